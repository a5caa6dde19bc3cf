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

// written is what a config writes, by kind and name.
type written struct {
	words map[Kind]words
	texts map[Kind]texts
}

// ignition describes what a config writes. No config writes nothing.
func ignition(b []byte) (written, error) {
	out := written{map[Kind]words{Link: {}, Directory: {}, User: {}}, map[Kind]texts{Unit: {}, File: {}}}
	if len(b) == 0 {
		return out, nil
	}
	var c types.Config
	if err := json.Unmarshal(b, &c); err != nil {
		return written{}, err
	}
	for _, u := range c.Systemd.Units {
		out.texts[Unit][u.Name] = unit(u)
	}
	for _, f := range c.Storage.Files {
		t := text{words: mode(f.Mode)}
		for _, r := range append([]types.Resource{f.Contents}, f.Append...) {
			words, b := content(r)
			t.words += ", " + words
			t.content = append(t.content, b...)
		}
		out.texts[File][f.Path] = t
	}
	for _, l := range c.Storage.Links {
		out.words[Link][l.Path] = "to " + value(l.Target)
	}
	for _, d := range c.Storage.Directories {
		out.words[Directory][d.Path] = mode(d.Mode)
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
		out.words[User][u.Name] = strings.Join(text, ", ")
	}
	return out, nil
}

// unit is described with its drop-ins, in the order of their names.
func unit(u types.Unit) text {
	var words []string
	var all []byte
	if u.Mask != nil && *u.Mask {
		words = append(words, "masked")
	}
	if u.Enabled != nil {
		words = append(words, map[bool]string{true: "enabled", false: "disabled"}[*u.Enabled])
	}
	if u.Contents != nil {
		words = append(words, bytesIn([]byte(*u.Contents)))
		all = append(all, *u.Contents...)
	}
	drops := slices.Clone(u.Dropins)
	slices.SortFunc(drops, func(a, b types.Dropin) int { return strings.Compare(a.Name, b.Name) })
	for _, d := range drops {
		words = append(words, "with "+d.Name+" of "+bytesIn([]byte(value(d.Contents))))
		all = append(all, "# "+d.Name+"\n"+value(d.Contents)...)
	}
	if len(words) == 0 {
		return text{present, all}
	}
	return text{strings.Join(words, ", "), all}
}

func mode(m *int) string {
	if m == nil {
		return "default mode"
	}
	return fmt.Sprintf("mode %04o", *m)
}

// content describes a resource by what it holds, not by how it is encoded. b is
// what it holds, when that is in it.
func content(r types.Resource) (words string, b []byte) {
	source := value(r.Source)
	if source == "" {
		return "0 bytes", nil
	}
	d, err := dataurl.DecodeString(source)
	if err != nil {
		return "from " + source + ", " + value(r.Verification.Hash), nil
	}
	b = d.Data
	if value(r.Compression) == "gzip" {
		if plain, err := gunzip(b); err == nil {
			b = plain
		}
	}
	return bytesIn(b), b
}

func gunzip(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, 64<<20))
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
