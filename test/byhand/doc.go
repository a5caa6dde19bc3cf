// Package byhand makes one cluster twice: as imagectl does it, and as somebody does it who
// types what kubeadm's documentation says, with a shell on every machine and never a pause.
// It compares how long both take.
//
// Its tests do so in the same virtual machines, from the same disk image and with the same
// container images: "make by-hand" runs them, on the test release (test/release/README.md).
// What types and what compares is also for machines that are processes (test/native).
package byhand
