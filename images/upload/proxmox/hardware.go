package proxmox

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
)

// hardware is what the options say of a template and what can be changed of one that is
// there. What is not in it the template has not.
func (t *Target) hardware(medium string) url.Values {
	form := url.Values{optionCPU: {t.CPU}, "cores": {strconv.Itoa(t.Cores)}, "memory": {strconv.Itoa(t.MemoryMB)}}
	if t.Bridge != "" {
		card := "virtio,bridge=" + t.Bridge
		if t.VLAN != 0 {
			card += ",tag=" + strconv.Itoa(t.VLAN)
		}
		form.Set(optionCard, card)
	}
	if medium != "" {
		form.Set(optionDrive, medium+",media=cdrom")
	}
	return form
}

// Options of a machine that are named twice.
const (
	optionCPU   = "cpu"
	optionCard  = "net0"
	optionDrive = "ide2"
)

// settings is a digest of the hardware, for the record in the notes: Proxmox VE adds to
// what it is given.
func (t *Target) settings() (string, error) {
	medium, _, _, err := t.drive()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(t.hardware(medium).Encode()))
	return hex.EncodeToString(sum[:8]), nil
}

// renewed are the parameters that give a template the hardware of now; none when it has
// that. The medium of node.json is there then.
func (t *Target) renewed(ctx context.Context, m *machine) (url.Values, error) {
	settings, err := t.settings()
	if err != nil || m.Settings == settings {
		return nil, err
	}
	medium, err := t.medium(ctx)
	if err != nil {
		return nil, err
	}
	form := t.hardware(medium)
	var gone []string
	for _, has := range []struct{ option, value string }{{optionCard, m.Card}, {optionDrive, m.Drive}} {
		if has.value != "" && !form.Has(has.option) {
			gone = append(gone, has.option)
		}
	}
	if len(gone) > 0 {
		form.Set("delete", strings.Join(gone, ","))
	}
	m.Settings = settings
	return form, nil
}

// Stale implements upload.Templates. The firmware stays what it is: its variables are on a
// disk that Proxmox VE makes with the machine.
func (t *Target) Stale(ctx context.Context, o upload.Object) (bool, error) {
	all, err := t.machines(ctx)
	if err != nil {
		return false, err
	}
	m, err := byID(all, o.ID)
	if err != nil {
		return false, err
	}
	if now, _ := current(all, m.family()); now != m {
		return false, nil
	}
	if has := cmp.Or(m.BIOS, BIOS); has != t.Firmware {
		return false, fmt.Errorf("VM %d has the firmware %s, and %s is wanted: that of a template cannot be changed; destroy the VM in Proxmox VE and upload the image again", m.VMID, has, t.Firmware)
	}
	settings, err := t.settings()
	return m.Settings != settings, err
}

var _ upload.Templates = (*Target)(nil)
