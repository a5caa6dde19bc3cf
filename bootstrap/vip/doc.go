// Package vip keeps an address of the Kubernetes API on one control plane at a time, for
// people and programs outside the cluster. Nodes never need it: each has a balancer of
// its own (package balancer).
//
// Who has the address is settled in etcd, in the way of its package concurrency: every
// control plane whose API server is ready puts a key under a lease of its own, and the
// oldest key counts. What differs is the clock. That package takes a lease for good from
// when the answer came; here it counts from before the question was sent, by the
// monotonic clock, so that this process lets go before etcd can give the place to another.
//
// A process that is stopped cannot let go of anything. So the address has a lifetime in
// the kernel (as addresses by DHCP have), which ends before the lease and is renewed with
// it: it goes away whether the process is stopped, hangs, or was killed.
//
// Decide is pure and says what to do. Keeper does it, by three interfaces: Place is etcd
// (Queue), Link is the kernel (Kernel), and what is ready comes from the caller. What a
// switch or a neighbour does with an announcement is beyond it, and so is a virtual
// machine that is paused as a whole, whose clocks stand still with it: it wakes up with the
// address, and lets go within CallTime plus Beat, when etcd tells it.
package vip
