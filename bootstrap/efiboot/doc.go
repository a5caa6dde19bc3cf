// Package efiboot puts the installed disk into a UEFI machine's boot order, right
// behind the entry that the machine netbooted from.
//
// A machine that always asks the network first boots its disk by iPXE's exit: the
// firmware goes on to its next entry. That is usually HTTP boot or IPv6 on the
// same card, and each of them runs into its time-out before the disk has its turn.
// The network stays first, so the server keeps the say over what a machine boots;
// only what follows changes.
//
// It follows the UEFI specification 2.10: section 3.1.3 (load options), 3.3 (global
// variables), 10.3 (device paths). It knows nothing of how variables are kept:
// package host reads and writes them.
package efiboot
