// Package store keeps what imagectl serve must not forget: machine records,
// decisions, the audit log and, encrypted, private keys. It is etcd's client API
// over an etcd that runs inside this process and listens on no socket at all.
//
// Changes are optimistic transactions. Reads of machine records come from a
// snapshot in memory that a watch keeps current: the boot path asks once per
// packet and must never wait for a disk. What a transaction of this process wrote
// is in the snapshot before Change returns.
package store
