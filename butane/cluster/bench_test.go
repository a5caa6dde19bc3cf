package cluster

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkParseThousandMachines is the size that imagectl serve is measured with.
func BenchmarkParseThousandMachines(b *testing.B) {
	text := strings.NewReplacer("10.0.0.0/24", "10.0.0.0/16", "10.244.0.0/16", "10.128.0.0/12", "10.96.0.0/12", "10.96.0.0/16").Replace(string(Minimal))
	var s strings.Builder
	s.WriteString(strings.Split(text, "\n# addons")[0] + "\n")
	for i := range 1000 {
		fmt.Fprintf(&s, "  - {name: w%d, role: worker, match: {mac: [\"52:54:00:01:%02x:%02x\"]}, address: 10.0.%d.%d, disk: {path: /dev/vda}}\n", i, i/256, i%256, 4+i/250, 1+i%250)
	}
	read := fake{"cluster.yaml": s.String()}.read
	for b.Loop() {
		if _, found := Parse(read, "cluster.yaml"); len(found) > 0 {
			b.Fatal(found[0])
		}
	}
}
