// Package enrol is how a machine gets its first certificate: the code that an
// operator compares, which record a request belongs to, and whether it is
// granted, kept waiting or refused. Decisions are pure; the store and the wire
// are bootstrap/serverapi's, the caller's side is bootstrap/agent's.
package enrol
