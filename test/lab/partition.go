package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// OnPartition mounts one partition of a disk that no guest uses and calls f with where.
// It needs root.
func OnPartition(disk, label string, f func(dir string) error) (err error) {
	start, size, err := partition(disk, label)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "imagectl-partition-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	out, err := exec.Command("mount", "-o", fmt.Sprintf("loop,offset=%d,sizelimit=%d", start, size), disk, dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mounting %s of %s: %w: %s", label, disk, err, out)
	}
	defer func() {
		if out, failed := exec.Command("umount", dir).CombinedOutput(); failed != nil {
			err = errors.Join(err, fmt.Errorf("unmounting %s of %s: %w: %s", label, disk, failed, out))
		}
	}()
	return f(dir)
}

// partition finds a partition by its GPT name with sfdisk; bytes.
func partition(disk, label string) (start, size int64, err error) {
	out, err := exec.Command("sfdisk", "--dump", disk).Output()
	if err != nil {
		return 0, 0, fmt.Errorf("reading the partitions of %s: %w", disk, err)
	}
	for line := range strings.SplitSeq(string(out), "\n") {
		if !strings.Contains(line, fmt.Sprintf("name=%q", label)) {
			continue
		}
		_, rest, _ := strings.Cut(line, "start=")
		if _, err := fmt.Sscanf(strings.ReplaceAll(rest, " ", ""), "%d,size=%d", &start, &size); err != nil {
			return 0, 0, fmt.Errorf("reading %q: %w", line, err)
		}
		return start * 512, size * 512, nil
	}
	return 0, 0, fmt.Errorf("%s has no partition %s:\n%s", disk, label, out)
}
