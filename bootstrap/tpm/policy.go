package tpm

import (
	"encoding/hex"
	"slices"
)

// PCRPolicy lists which values platform configuration registers may have, SHA-256 in
// lower-case hexadecimal. A register that is not in it may have any.
type PCRPolicy map[uint][]string

// Outside returns the first register, by its number, whose value the policy does not have;
// false when there is none. pcrs are the values of PCRIndexes.
func (p PCRPolicy) Outside(pcrs [][]byte) (index uint, value string, outside bool) {
	for i, index := range PCRIndexes() {
		allowed, asked := p[index]
		if !asked {
			continue
		}
		value := ""
		if i < len(pcrs) {
			value = hex.EncodeToString(pcrs[i])
		}
		if !slices.Contains(allowed, value) {
			return index, value, true
		}
	}
	return 0, "", false
}

// Measures says what a register holds the measurements of (TCG PC Client Platform Firmware
// Profile 1.06, table 1; those from 8 on by GRUB and shim); empty for one that is not quoted.
func Measures(index uint) string {
	return map[uint]string{
		0: "the firmware's code", 1: "the firmware's configuration", 2: "code of cards", 3: "configuration of cards",
		4: "boot loaders", 5: "the boot loader's configuration and the partition table", 6: "what the maker of the machine measures",
		7: "the state of Secure Boot", 8: "commands of GRUB and the kernel's command line", 9: "files that GRUB has read", 14: "keys of shim",
	}[index]
}
