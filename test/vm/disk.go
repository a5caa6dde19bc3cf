package vm

import (
	"context"
	"encoding/json"
	"fmt"
)

// DiskWrites is how often the guest has asked its disk to change something since it was
// switched on: writes and discards, whatever became of them.
func (g *Guest) DiskWrites(ctx context.Context) (int, error) {
	returned, err := g.ask(ctx, "query-blockstats", nil)
	if err != nil {
		return 0, err
	}
	var devices []struct {
		Device string `json:"device"`
		Stats  struct {
			Writes   int `json:"wr_operations"`
			Discards int `json:"unmap_operations"`
			Failed   int `json:"failed_wr_operations"`
			Refused  int `json:"invalid_wr_operations"`
		} `json:"stats"`
	}
	if err := json.Unmarshal(returned, &devices); err != nil {
		return 0, fmt.Errorf("reading what the disks of guest %s did: %w", g.Name, err)
	}
	for _, d := range devices {
		if d.Device == "disk" {
			return d.Stats.Writes + d.Stats.Discards + d.Stats.Failed + d.Stats.Refused, nil
		}
	}
	return 0, fmt.Errorf("guest %s has no disk among %s", g.Name, returned)
}
