package diff

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/coreos/ignition/v2/config/v3_4/types"
	"github.com/vincent-petithory/dataurl"
)

// ignition describes what a config writes, by kind and name. No config writes
// nothing.
func ignition(b []byte) (map[Kind]words, error) {
	out := map[Kind]words{Unit: {}, File: {}, Link: {}, Directory: {}, User: {}}
	if len(b) == 0 {
		return out, nil
	}
	var c types.Config
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	for _, u := range c.Systemd.Units {
		out[Unit][u.Name] = unit(u)
	}
	for _, f := range c.Storage.Files {
		text := mode(f.Mode)
		for _, r := range append([]types.Resource{f.Contents}, f.Append...) {
			text += ", " + content(r)
		}
		out[File][f.Path] = text
	}
	for _, l := range c.Storage.Links {
		out[Link][l.Path] = "to " + value(l.Target)
	}
	for _, d := range c.Storage.Directories {
		out[Directory][d.Path] = mode(d.Mode)
	}
	for _, u := range c.Passwd.Users {
		text := []string{present}
		if u.Shell != nil {
			text = append(text, "shell "+*u.Shell)
		}
		for _, g := range u.Groups {
			text = append(text, "group "+string(g))
		}
		if n := len(u.SSHAuthorizedKeys); n > 0 {
			text = append(text, fmt.Sprintf("%d SSH keys", n))
		}
		if u.PasswordHash != nil {
			text = append(text, "a password")
		}
		out[User][u.Name] = strings.Join(text, ", ")
	}
	return out, nil
}

func unit(u types.Unit) string {
	var text []string
	if u.Mask != nil && *u.Mask {
		text = append(text, "masked")
	}
	if u.Enabled != nil {
		text = append(text, map[bool]string{true: "enabled", false: "disabled"}[*u.Enabled])
	}
	if u.Contents != nil {
		text = append(text, bytesIn([]byte(*u.Contents)))
	}
	drops := slices.Clone(u.Dropins)
	slices.SortFunc(drops, func(a, b types.Dropin) int { return strings.Compare(a.Name, b.Name) })
	for _, d := range drops {
		text = append(text, "with "+d.Name+" of "+bytesIn([]byte(value(d.Contents))))
	}
	if len(text) == 0 {
		return present
	}
	return strings.Join(text, ", ")
}

func mode(m *int) string {
	if m == nil {
		return "default mode"
	}
	return fmt.Sprintf("mode %04o", *m)
}

// content describes a resource by what it holds, not by how it is encoded.
func content(r types.Resource) string {
	source := value(r.Source)
	if source == "" {
		return "0 bytes"
	}
	d, err := dataurl.DecodeString(source)
	if err != nil {
		return "from " + source + ", " + value(r.Verification.Hash)
	}
	if value(r.Compression) != "gzip" {
		return bytesIn(d.Data)
	}
	z, err := gzip.NewReader(bytes.NewReader(d.Data))
	if err != nil {
		return bytesIn(d.Data)
	}
	plain, err := io.ReadAll(io.LimitReader(z, 64<<20))
	if err != nil {
		return bytesIn(d.Data)
	}
	return bytesIn(plain)
}

func bytesIn(b []byte) string {
	sum := sha256.Sum256(b)
	return fmt.Sprintf("%d bytes, sha256 %s", len(b), short(hex.EncodeToString(sum[:])))
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
