//go:build upload

package vsphere_test

// everyFault: make upload-test tries them all.
const everyFault = true
