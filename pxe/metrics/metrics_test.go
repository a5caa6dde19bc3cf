package metrics

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/dhcp6"
	"github.com/imagectl/imagectl/pxe/funnel"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/tftp"
)

var (
	_ boot.Recorder  = (*Boot)(nil)
	_ dhcp.Meter     = (*DHCP)(nil)
	_ dhcp6.Meter    = (*DHCP)(nil)
	_ tftp.Meter     = (*TFTP)(nil)
	_ httpboot.Meter = (*HTTP)(nil)
)

var start = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)

func at(seconds int, stage boot.Stage, name string, mac byte) boot.Event {
	return boot.Event{At: start.Add(time.Duration(seconds) * time.Second), Stage: stage, Name: name, Machine: boot.Machine{MAC: net.HardwareAddr{2, 0, 0, 0, 0, mac}}}
}

func TestWhatIsCounted(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	b, err := New(reg, funnel.New([]string{"cp1", "w1"}))
	if err != nil {
		t.Fatal(err)
	}
	b.Record(at(0, boot.StageDHCP, "cp1", 1))
	b.Record(at(1, boot.StageNBP, "cp1", 1))
	b.Record(at(2, boot.StageDHCP, "w1", 2))
	full := at(3, boot.StageDHCP, "", 3)
	full.Refusal = boot.Refusal{Code: "pool-exhausted", Reason: "no address is free"}
	b.Record(full)
	b.Record(full)
	b.Record(at(4, boot.StageDHCP, "", 4))
	b.Record(at(4, boot.StageNBP, "gone from cluster.yaml", 4))
	b.DHCP().Received("discover", "offer", 300)
	b.DHCP().Sent(1, 310)
	b.DHCP().Waiting(3)
	b.DHCP().Waiting(-1)
	b.DHCP().Pools(func() []dhcp.Usage {
		return []dhcp.Usage{{Subnet: netip.MustParsePrefix("10.0.0.0/24"), Pool: 50, Leased: 7, Reserved: 2}}
	})
	b.DHCP().Others(func() []dhcp.Other { return []dhcp.Other{{Server: netip.MustParseAddr("10.0.0.9"), Last: start}} })
	b.TFTP().Begun()
	b.TFTP().Begun()
	b.TFTP().Ended("snponly.efi", 1000, true)
	b.HTTP().Begun("file")
	b.HTTP().Ended("file", 200, 5000)

	const want = `
# HELP imagectl_boot_refusals_total Refusals on the boot path by the stage that was asked for and reason code; imagectl why MAC has the sentence.
# TYPE imagectl_boot_refusals_total counter
imagectl_boot_refusals_total{code="pool-exhausted",stage="dhcp"} 2
# HELP imagectl_boot_stage_entered_timestamp_seconds When a machine whose boot is under way came to the stage it is in.
# TYPE imagectl_boot_stage_entered_timestamp_seconds gauge
imagectl_boot_stage_entered_timestamp_seconds{machine="cp1",stage="nbp"} 1.795248001e+09
imagectl_boot_stage_entered_timestamp_seconds{machine="w1",stage="dhcp"} 1.795248002e+09
# HELP imagectl_boot_stages_total How often a machine came to a stage of its boot.
# TYPE imagectl_boot_stages_total counter
imagectl_boot_stages_total{machine="(unlisted)",stage="dhcp"} 2
imagectl_boot_stages_total{machine="(unlisted)",stage="enrolled"} 0
imagectl_boot_stages_total{machine="(unlisted)",stage="ignition"} 0
imagectl_boot_stages_total{machine="(unlisted)",stage="initrd"} 0
imagectl_boot_stages_total{machine="(unlisted)",stage="kernel"} 0
imagectl_boot_stages_total{machine="(unlisted)",stage="nbp"} 1
imagectl_boot_stages_total{machine="(unlisted)",stage="script"} 0
imagectl_boot_stages_total{machine="cp1",stage="dhcp"} 1
imagectl_boot_stages_total{machine="cp1",stage="nbp"} 1
imagectl_boot_stages_total{machine="w1",stage="dhcp"} 1
# HELP imagectl_dhcp_pool_addresses Size of the dynamic range of a subnet.
# TYPE imagectl_dhcp_pool_addresses gauge
imagectl_dhcp_pool_addresses{subnet="10.0.0.0/24"} 50
# HELP imagectl_dhcp_pool_leases Addresses of the dynamic range that are given out, offered or resting.
# TYPE imagectl_dhcp_pool_leases gauge
imagectl_dhcp_pool_leases{subnet="10.0.0.0/24"} 7
# HELP imagectl_dhcp_requests_in_flight DHCP answers that wait until their lease is on the disk.
# TYPE imagectl_dhcp_requests_in_flight gauge
imagectl_dhcp_requests_in_flight 2
# HELP imagectl_dhcp_requests_total DHCP packets received, by message type and the code of the decision.
# TYPE imagectl_dhcp_requests_total counter
imagectl_dhcp_requests_total{code="offer",type="discover"} 1
# HELP imagectl_http_sent_bytes_total Bytes of bodies sent by HTTP; a transfer counts when it ends.
# TYPE imagectl_http_sent_bytes_total counter
imagectl_http_sent_bytes_total{route="file"} 5000
# HELP imagectl_tftp_transfers_in_flight TFTP transfers that run.
# TYPE imagectl_tftp_transfers_in_flight gauge
imagectl_tftp_transfers_in_flight 1
`
	var names []string
	for l := range strings.Lines(want) {
		if f := strings.Fields(l); len(f) > 2 && f[1] == "TYPE" {
			names = append(names, f[2])
		}
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	// cp1 came from DHCP to its boot program in 1 s, a stranger at once, nobody came further.
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	took := map[string]string{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if h := m.GetHistogram(); h != nil && f.GetName() == "imagectl_boot_stage_duration_seconds" {
				took[m.GetLabel()[0].GetValue()] = fmt.Sprint(h.GetSampleCount(), h.GetSampleSum(), h.GetBucket()[1].GetCumulativeCount(), h.GetBucket()[2].GetCumulativeCount())
			}
		}
	}
	if len(took) != len(boot.Stages()) || took["nbp"] != "2 1 1 2" || took["script"] != "0 0 0 0" {
		t.Errorf("stages took %v", took)
	}
}

// A flood of invented machines makes no series.
func TestSeriesAreBounded(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	b, err := New(reg, funnel.New([]string{"cp1"}))
	if err != nil {
		t.Fatal(err)
	}
	before, err := testutil.GatherAndCount(reg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1500 {
		for _, s := range boot.Stages() {
			e := at(i, s, fmt.Sprint("invented-", i), 0)
			e.Machine.MAC = net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)}
			b.Record(e)
		}
	}
	if after, err := testutil.GatherAndCount(reg); err != nil || after != before {
		t.Errorf("%d series grew to %d, %v", before, after, err)
	}
}
