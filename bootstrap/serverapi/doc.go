// Package serverapi answers the wire contract on the server's side: enrolment for
// anyone, the agent's calls for nodes, the operators' calls for people. Who calls
// is what a verified client certificate says, never what a message says; who may
// call what is one table (permissions).
//
// Decisions are made elsewhere (enrol, coordinator, machine, pki). This package
// brings them together with the store: every change is one transaction that also
// carries its audit entries, and nothing leaves before it is committed. What
// machines merely report (steps, health, progress) is kept in memory; they say it
// again within seconds of a restart.
package serverapi
