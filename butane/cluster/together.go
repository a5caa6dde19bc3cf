package cluster

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/butane/diag"
)

// Together parses the files of clusters that one host or one network serves, and finds what
// two of them cannot both have. That is looked for when each of them is valid by itself. Specs
// are in the order of files.
func Together(read func(path string) ([]byte, error), files []string) ([]Spec, diag.List) {
	var specs []Spec
	var found diag.List
	for _, f := range files {
		s, list := Parse(read, f)
		specs, found = append(specs, s), append(found, list...)
	}
	if errs, _ := found.Count(); errs > 0 {
		return specs, found
	}
	t := &together{found: found}
	for i, f := range files {
		values, _ := Merged(read, f) // it was parsed
		one := &side{Spec: specs[i], file: f, at: map[string]diag.Pos{}}
		for _, v := range values {
			one.at[v.Path] = v.Pos
		}
		one.marks = one.collect()
		for _, other := range t.sides {
			t.compare(other, one)
		}
		t.sides = append(t.sides, one)
	}
	return specs, t.found
}

// together is what is known of several clusters.
type together struct {
	sides []*side
	found diag.List
}

// side is one of the clusters.
type side struct {
	Spec
	file string
	// at are the places of the file's values.
	at    map[string]diag.Pos
	marks []mark
}

// mark is something that only one cluster can have.
type mark struct {
	// kind and value are the same for what is the same; who has it in the cluster.
	kind, value, who string
	path             string
}

// pos is where a path stands, or else the first of its parts, or what it is a part of, or the
// file.
func (m *side) pos(path string) diag.Pos {
	for p := path; p != ""; {
		if at, ok := m.at[p]; ok {
			return at
		}
		var first diag.Pos
		for q, at := range m.at {
			if part := strings.HasPrefix(q, p+".") || strings.HasPrefix(q, p+"["); part && (first.Line == 0 || at.Line < first.Line || at.Line == first.Line && at.Column < first.Column) {
				first = at
			}
		}
		if first.Line > 0 {
			return first
		}
		p = p[:max(0, strings.LastIndexAny(p, ".["))]
	}
	return diag.Pos{File: m.file}
}

func (t *together) add(severity diag.Severity, m *side, path, hint, format string, args ...any) {
	t.found = append(t.found, diag.Finding{Severity: severity, Pos: m.pos(path), Path: path, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// addresses are the kind of mark that ranges are compared with.
const addresses = "address"

func (m *side) collect() []mark {
	out := []mark{{"name", m.Name, "the cluster", "cluster"}}
	add := func(kind, value, who, path string) {
		if value != "" {
			out = append(out, mark{kind, value, who, path})
		}
	}
	address := func(a netip.Addr, who, path string) {
		if a.IsValid() {
			add(addresses, a.String(), who, path)
		}
	}
	address(m.Server.Address, "the server", "server.address")
	for i, a := range m.Server.Peers {
		address(a, "a server", fmt.Sprintf("server.peers[%d]", i))
	}
	address(m.Boot.DHCP6.Address, "the server", "boot.dhcp6.address")
	for i, a := range m.Kubernetes.APIVIP {
		address(a, "kubernetes.apiVIP", fmt.Sprintf("kubernetes.apiVIP[%d]", i))
	}
	if _, set := m.at["kubernetes.endpoint"]; set {
		add("endpoint", m.Kubernetes.Endpoint, "kubernetes.endpoint", "kubernetes.endpoint")
	}
	add("directory", m.Backup.Target, "backup.target", "backup.target")
	for i, machine := range m.Machines {
		path := fmt.Sprintf("machines[%d]", i)
		for j, mac := range machine.MACs {
			add("MAC", mac.String(), machine.Name, fmt.Sprintf("%s.match.mac[%d]", path, j))
		}
		add("UUID", machine.UUID, machine.Name, path+".match.uuid")
		add("serial", machine.Serial, machine.Name, path+".match.serial")
		add("tpm.ek", machine.EK, machine.Name, path+".tpm.ek")
		address(machine.Address, machine.Name, path+".address")
		if machine.BMC != nil {
			add("BMC", strings.TrimSuffix(machine.BMC.Address+" "+machine.BMC.System, " "), machine.Name, path+".bmc.address")
		}
	}
	return out
}

// compare says at b what a has already.
func (t *together) compare(a, b *side) {
	has := map[[2]string]mark{}
	for _, m := range a.marks {
		has[[2]string{m.kind, m.value}] = m
	}
	for _, m := range b.marks {
		if first, ok := has[[2]string{m.kind, m.value}]; ok {
			t.add(diag.Error, b, m.path, "", "%s %s of %s is that of %s at %s (%s): two clusters cannot both have it", m.kind, m.value, m.who, first.who, a.pos(first.path), first.path)
		}
	}
	for _, m := range b.Machines {
		if i := slices.IndexFunc(a.Machines, func(o Machine) bool { return o.Name == m.Name }); i >= 0 {
			path := fmt.Sprintf("machines[%d].name", slices.IndexFunc(b.Machines, func(o Machine) bool { return o.Name == m.Name }))
			t.add(diag.Warning, b, path, "", "%s is also a machine at %s: two machines with one hostname are easily taken for each other", m.Name, a.pos(fmt.Sprintf("machines[%d].name", i)))
		}
	}
	t.ranges(a, b)
	t.ranges(b, a)
	t.rangeOverlaps(a, b)
	t.network(a, b)
}

// ranges finds addresses of b in ranges of a.
func (t *together) ranges(a, b *side) {
	for i, s := range a.Boot.Subnets {
		for _, m := range b.marks {
			if m.kind != addresses {
				continue
			}
			if ip, err := netip.ParseAddr(m.value); err == nil && s.inRange(ip) {
				t.add(diag.Error, b, m.path, "choose one outside, or make the range smaller", "%s of %s is inside the dynamic range %s to %s of cluster %s at %s, where another machine may get it",
					ip, m.who, s.First, s.Last, a.Name, a.pos(fmt.Sprintf("boot.subnets[%d].range.first", i)))
			}
		}
	}
}

func (t *together) rangeOverlaps(a, b *side) {
	for i, s := range a.Boot.Subnets {
		for j, o := range b.Boot.Subnets {
			if s.First.IsValid() && o.First.IsValid() && !o.Last.Less(s.First) && !s.Last.Less(o.First) {
				t.add(diag.Error, b, fmt.Sprintf("boot.subnets[%d].range.first", j), "give each cluster a range of its own", "the dynamic range %s to %s overlaps %s to %s of cluster %s at %s: one address would be given twice",
					o.First, o.Last, s.First, s.Last, a.Name, a.pos(fmt.Sprintf("boot.subnets[%d].range.first", i)))
			}
		}
	}
}

// network checks two servers that hear the same machines.
func (t *together) network(a, b *side) {
	if a.Boot.DHCP == "off" || b.Boot.DHCP == "off" {
		return
	}
	var shared bool
	for _, s := range a.Boot.Subnets {
		shared = shared || slices.ContainsFunc(b.Boot.Subnets, func(o Subnet) bool { return s.Prefix.Overlaps(o.Prefix) })
	}
	same := a.Boot.Interface != "" && a.Boot.Interface == b.Boot.Interface
	switch {
	case shared:
	case same && (len(a.Boot.Subnets) == 0 || len(b.Boot.Subnets) == 0):
	case same:
		t.add(diag.Warning, b, "boot.interface", "", "cluster %s answers on %s too, in other subnets: on one host that takes boot.neighbours in both files", a.Name, a.Boot.Interface)
		return
	default:
		return
	}
	t.named(a, b)
	t.named(b, a)
	if a.Boot.Unknown == "discover" && b.Boot.Unknown == "discover" {
		t.add(diag.Error, b, "boot.unknown", "unknown: ignore", "clusters %s and %s both answer machines that nobody lists (boot.unknown: discover) on one network; at most one can", a.Name, b.Name)
	}
}

// named checks that a leaves b's servers and machines alone.
func (t *together) named(a, b *side) {
	cards := map[string]bool{}
	for _, n := range a.Boot.Neighbours {
		for _, mac := range n.Machines {
			cards[mac.String()] = true
		}
	}
	for _, server := range append([]netip.Addr{b.Server.Address}, b.Server.Peers...) {
		if !slices.ContainsFunc(a.Boot.Neighbours, func(n Neighbour) bool { return n.Address == server }) {
			t.add(diag.Error, a, cmp.Or(firstOf(a.at, "boot.neighbours[0].address"), "boot.dhcp", "boot"), fmt.Sprintf("neighbours: [{address: %s}]", server),
				"the server %s of cluster %s answers on the same network, and boot.neighbours does not name it", server, b.Name)
		}
	}
	if a.Boot.Unknown != "discover" {
		return
	}
	var missing []string
	for i, m := range b.Machines {
		if len(m.MACs) == 0 {
			t.add(diag.Error, b, fmt.Sprintf("machines[%d].match", i), "match: {mac: [...]}", "%s has no match.mac, so cluster %s, which discovers machines on the same network, cannot tell it from a stranger", m.Name, a.Name)
		}
		for _, mac := range m.MACs {
			if !cards[mac.String()] {
				missing = append(missing, fmt.Sprintf("%q", mac.String()))
			}
		}
	}
	if len(missing) > 0 {
		t.add(diag.Error, a, cmp.Or(firstOf(a.at, "boot.neighbours[0].address"), "boot.dhcp"), fmt.Sprintf("neighbours: [{address: %s, machines: [%s]}]", b.Server.Address, strings.Join(missing, ", ")),
			"cluster %s discovers machines and would answer %d of cluster %s: boot.neighbours has to list their cards, or boot.unknown to be ignore", a.Name, len(missing), b.Name)
	}
}

// firstOf is the path when it has a place.
func firstOf(at map[string]diag.Pos, path string) string {
	if _, ok := at[path]; ok {
		return path
	}
	return ""
}
