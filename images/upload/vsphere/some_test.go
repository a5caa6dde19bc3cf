//go:build !upload

package vsphere_test

// everyFault: the simulator takes 35 ms of a processor for an upload that breaks off
// and is mended, so that make unit tries a quarter of them.
const everyFault = false
