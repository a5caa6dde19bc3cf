package etcd

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// What a member's disk has to keep, for 99 of 100 operations (etcd.io/docs/v3.6/faq, "What does
// the etcd warning 'apply entries took too long' mean?").
const (
	SlowFsync  = 10 * time.Millisecond
	SlowCommit = 25 * time.Millisecond
)

// Bucket counts the operations that took no longer than Bound, in seconds, since etcd started.
type Bucket struct {
	Bound float64
	Count uint64
}

// Disk is what a member has measured of its disk. The zero value is nothing.
type Disk struct {
	// Fsync is of its log, Commit of its database; in rising order of bounds.
	Fsync, Commit []Bucket
	// LeaderChanges is how often the member has got a leader since etcd started, the first one
	// counts too. It is beside the disk because a slow one costs leaders.
	LeaderChanges uint64
}

// The names in etcd's /metrics.
const (
	fsyncMetric   = "etcd_disk_wal_fsync_duration_seconds"
	commitMetric  = "etcd_disk_backend_commit_duration_seconds"
	leadersMetric = "etcd_server_leader_changes_seen_total"
)

// AskDisk reads the metrics of the member at endpoint.
func AskDisk(ctx context.Context, endpoint string, conf *tls.Config) (Disk, error) {
	t := &http.Transport{TLSClientConfig: conf}
	defer t.CloseIdleConnections()
	at := endpoint + "/metrics"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return Disk{}, fmt.Errorf("asking %s: %w", at, err)
	}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return Disk{}, fmt.Errorf("asking %s: %w", at, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Disk{}, fmt.Errorf("asking %s: %s", at, resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(http.MaxBytesReader(nil, resp.Body, 8<<20))
	if err != nil {
		return Disk{}, fmt.Errorf("reading %s: %w", at, err)
	}
	buckets := func(name string) []Bucket {
		var out []Bucket
		for _, m := range families[name].GetMetric() {
			for _, b := range m.GetHistogram().GetBucket() {
				out = append(out, Bucket{b.GetUpperBound(), b.GetCumulativeCount()})
			}
		}
		return out
	}
	d := Disk{Fsync: buckets(fsyncMetric), Commit: buckets(commitMetric)}
	for _, m := range families[leadersMetric].GetMetric() {
		d.LeaderChanges = uint64(m.GetCounter().GetValue())
	}
	return d, nil
}

// fewest is how many operations say something about one of a hundred.
const fewest = 100

// P99 is how long 99 of 100 operations took at most, of those between two looks, with a straight
// line inside a bucket as Prometheus' histogram_quantile has it. It is 0 where there were
// too few, or where etcd started anew in between. What is beyond the last bound counts as that.
func P99(before, after []Bucket) time.Duration {
	n := len(after)
	if n == 0 || len(before) != n && before != nil {
		return 0
	}
	count := func(i int) uint64 {
		if before == nil {
			return after[i].Count
		}
		if before[i].Count > after[i].Count {
			return 0
		}
		return after[i].Count - before[i].Count
	}
	all := count(n - 1)
	if all < fewest {
		return 0
	}
	rank := 0.99 * float64(all)
	lower, below := 0.0, 0.0
	for i, b := range after {
		c := float64(count(i))
		if c < rank {
			if !math.IsInf(b.Bound, 1) {
				lower = b.Bound
			}
			below = c
			continue
		}
		if math.IsInf(b.Bound, 1) {
			return seconds(lower)
		}
		return seconds(lower + (b.Bound-lower)*(rank-below)/(c-below))
	}
	return seconds(lower)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
