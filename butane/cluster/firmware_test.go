package cluster

import (
	"slices"
	"testing"
)

func TestQuirksOfAMachine(t *testing.T) {
	for _, c := range []struct {
		name, firmware string
		quirks         []string
		localBoot      string
		found          []string
	}{
		{"one brings its way to the disk", "{quirks: [small-blocks, exit-hangs]}", []string{"small-blocks", "exit-hangs"}, "sanboot", nil},
		{"what is written counts", "{quirks: [exit-hangs], localBoot: poweroff}", []string{"exit-hangs"}, "poweroff", nil},
		{"none", "{}", nil, "exit", nil},
		{"a name with a mistake", "{quirks: [smal-blocks]}", nil, "exit",
			[]string{`machines[0].firmware.quirks[0]: "smal-blocks" is not one of discovery-control, plain-file-name, late-answer, small-blocks, blksize-misunderstood, exit-hangs`}},
		{"one that goes by packet", "{quirks: [raspberry-pi]}", nil, "exit",
			[]string{`machines[0].firmware.quirks[0]: "raspberry-pi" is not one of discovery-control, plain-file-name, late-answer, small-blocks, blksize-misunderstood, exit-hangs`}},
		{"twice", "{quirks: [late-answer, late-answer]}", []string{"late-answer"}, "exit", []string{`machines[0].firmware.quirks[1]: "late-answer" is there twice`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := edit(t, "    address: 10.0.0.11\n", "    address: 10.0.0.11\n    firmware: "+c.firmware+"\n")
			spec, found := Parse(fake{"cluster.yaml": text}.read, "cluster.yaml")
			var got []string
			for _, f := range found {
				got = append(got, f.Path+": "+f.Message)
			}
			if !slices.Equal(got, c.found) {
				t.Errorf("found %q, want %q", got, c.found)
			}
			m := spec.Machines[0]
			if !slices.Equal(m.Quirks, c.quirks) || m.LocalBoot != c.localBoot {
				t.Errorf("got %v and %s, want %v and %s", m.Quirks, m.LocalBoot, c.quirks, c.localBoot)
			}
		})
	}
}
