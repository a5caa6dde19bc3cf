package cluster

import (
	"slices"
	"strconv"
	"strings"
)

// quotedPCRs are the registers that a TPM quotes (bootstrap/tpm.PCRIndexes).
func quotedPCRs() []int { return []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14} }

// pcrs checks what registers of TPMs may hold.
func (c *checker) pcrs(raw rawIdentity, identity string) map[uint][]string {
	const show = "imagectl machines show prints the values when the machine has asked"
	var out map[uint][]string
	seen := map[string]place{}
	for _, r := range raw.TPM.PCRs {
		i := r.Index
		switch {
		case !i.Set:
			continue
		case !slices.Contains(quotedPCRs(), i.V):
			c.add(i.Pos, i.Path, "one of 0 to 9, and 14", "register %d is not asked for", i.V)
			continue
		}
		c.unique(seen, "pcrs", strconv.Itoa(i.V), i.place)
		if len(r.SHA256) == 0 && !c.reported(r.place.Path) {
			c.add(r.place.Pos, r.place.Path, show, "allows no value for register %d, so no machine would come in", i.V)
		}
		for _, v := range r.SHA256 {
			value := strings.ToLower(v.V)
			if v.Set && !sha256Text.MatchString(value) {
				c.add(v.Pos, v.Path, show, "%q is no value of a register: want 64 hexadecimal digits", v.V)
				continue
			}
			if out == nil {
				out = map[uint][]string{}
			}
			out[uint(i.V)] = append(out[uint(i.V)], value)
		}
	}
	if len(raw.TPM.PCRs) > 0 && identity != "tpm" {
		c.add(raw.TPM.place.Pos, raw.TPM.place.Path, "policy: tpm", "nobody asks for TPMs: identity.policy is %s", identity)
	}
	return out
}
