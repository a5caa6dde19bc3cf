//go:build root && !netboot

package server_test

import (
	"bytes"
	"testing"

	"github.com/imagectl/imagectl/test/vm"
)

// kernelContent does not matter here: that it was fetched does. A smaller file would be
// run as it is by iPXE under BIOS.
func kernelContent(*testing.T) []byte { return bytes.Repeat([]byte("not a kernel\n"), 100_000) }

// starts is for machines with a real kernel: make netboot-test.
func starts(*testing.T, *vm.Guest) {}
