// Package etcdsnap takes snapshots of a cluster's etcd by schedule, encrypted to the operators'
// recovery keys, and keeps them in a directory and a bucket.
//
// A snapshot is what "etcdctl snapshot save" writes: the member's database, and the SHA-256 of
// it as its last 32 bytes (etcd.io/docs/v3.6/op-guide/recovery). Its file is that, encrypted by
// age: `age -d -i KEY FILE > etcd.db`, and etcdutl reads it. Beside it lies a manifest, FILE.json,
// that says which member it is of, the revision that it has at least, and digests; the server
// has signed it, for anybody could encrypt something to the recipients.
//
// What is to be done next is decided by Next, which is pure. A Source says whose turn it is and
// remembers that one is being taken, so that there is one at a time. A file has its name only
// when all of it was written, read back, decrypted and found to end with its own digest; its
// manifest is there before.
//
// That digest proves that what the member sent is what lies there. It does not prove that the
// member's database is sound; Inspect reads that, page by page and key by key. Neither proves that
// Kubernetes can use it: a drill does (docs/backup.md).
package etcdsnap
