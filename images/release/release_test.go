package release_test

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
	"github.com/imagectl/imagectl/images/store"
)

func day(year int) time.Time { return time.Date(year, 3, 7, 12, 0, 0, 0, time.UTC) }

func at(t time.Time, years int) *packet.Config {
	return &packet.Config{
		Algorithm:       packet.PubKeyAlgoEdDSA,
		Time:            func() time.Time { return t },
		KeyLifetimeSecs: uint32(years * 365 * 24 * 3600),
	}
}

// buildbot is keyed as Flatcar's: a primary without expiry, a subkey of 2023 that
// lived two years, one of 2025.
type buildbot struct {
	*openpgp.Entity
}

func newBuildbot(t *testing.T, name string) buildbot {
	t.Helper()
	e, err := openpgp.NewEntity(name, "", name+"@example.org", at(day(2018), 0))
	if err != nil {
		t.Fatal(err)
	}
	e.Subkeys = nil // the encryption subkey
	for _, year := range []int{2023, 2025} {
		if err := e.AddSigningSubkey(at(day(year), 2)); err != nil {
			t.Fatal(err)
		}
	}
	return buildbot{e}
}

func (b buildbot) primary() string { return fmt.Sprintf("%X", b.PrimaryKey.Fingerprint) }
func (b buildbot) subkey(i int) string {
	return fmt.Sprintf("%X", b.Subkeys[i].PublicKey.Fingerprint)
}

func (b buildbot) public(t *testing.T) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := b.Serialize(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// sign makes a signature with any subkey at any time, sensible or not.
func (b buildbot) sign(t *testing.T, subkey int, made time.Time, content []byte) []byte {
	t.Helper()
	key := b.Subkeys[subkey].PrivateKey
	sig := &packet.Signature{
		Version: 4, SigType: packet.SigTypeBinary, PubKeyAlgo: key.PubKeyAlgo,
		Hash: crypto.SHA512, CreationTime: made, IssuerKeyId: &key.KeyId,
	}
	h := crypto.SHA512.New()
	h.Write(content)
	if err := sig.Sign(h, key, at(made, 0)); err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := sig.Serialize(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestSignatures(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("flatcar"), 1000)
	flipped := bytes.Clone(content)
	flipped[3500] ^= 4
	bot, stranger := newBuildbot(t, "bot"), newBuildbot(t, "stranger")
	revoked := newBuildbot(t, "revoked")
	if err := revoked.Subkeys[1].Revoke(packet.KeyCompromised, "stolen", at(day(2026), 0)); err != nil {
		t.Fatal(err)
	}
	now := day(2026).AddDate(0, 6, 0)
	for name, tc := range map[string]struct {
		by       buildbot
		sig      []byte
		content  []byte
		wantErr  []string
		wantBy   string
		wantTime string
	}{
		"by the current subkey": {by: bot, sig: bot.sign(t, 1, day(2026), content), content: content,
			wantBy: bot.subkey(1), wantTime: "2026-03-07T12:00:00Z"},
		"by a subkey that has since expired": {by: bot, sig: bot.sign(t, 0, day(2024), content), content: content,
			wantBy: bot.subkey(0), wantTime: "2024-03-07T12:00:00Z"},
		"two signatures of which one is a stranger's": {by: bot, content: content,
			sig:    append(stranger.sign(t, 1, day(2026), content), bot.sign(t, 1, day(2026), content)...),
			wantBy: bot.subkey(1), wantTime: "2026-03-07T12:00:00Z"},
		"by a stranger": {by: bot, sig: stranger.sign(t, 1, day(2026), content), content: content,
			wantErr: []string{"made by key " + stranger.subkey(1), "neither the pinned primary key " + bot.primary()}},
		"by a revoked subkey": {by: revoked, sig: revoked.sign(t, 1, day(2025).AddDate(0, 1, 0), content), content: content,
			wantErr: []string{revoked.subkey(1), "has been revoked on 2026-03-07"}},
		"by a subkey that had expired already": {by: bot, sig: bot.sign(t, 0, day(2026), content), content: content,
			wantErr: []string{"made on 2026-03-07 12:00:00 UTC by subkey " + bot.subkey(0), "had expired on 2025-03-06"}},
		"by a subkey before it existed": {by: bot, sig: bot.sign(t, 1, day(2024), content), content: content,
			wantErr: []string{"exists since 2025-03-07 12:00:00 UTC only", bot.subkey(1)}},
		"in the future": {by: bot, sig: bot.sign(t, 1, day(2027).AddDate(0, 0, -10), content), content: content,
			wantErr: []string{"in the future", "clock"}},
		"over a file with a flipped bit": {by: bot, sig: bot.sign(t, 1, day(2026), content), content: flipped,
			wantErr: []string{"changed or cut off", bot.subkey(1), "2026-03-07"}},
		"over a truncated file": {by: bot, sig: bot.sign(t, 1, day(2026), content), content: content[:6999],
			wantErr: []string{"changed or cut off"}},
		"that is cut off itself": {by: bot, sig: bot.sign(t, 1, day(2026), content)[:40], content: content,
			wantErr: []string{"reading the signature"}},
		"that is empty": {by: bot, sig: nil, content: content, wantErr: []string{"holds no OpenPGP signature"}},
		"that is a page of HTML": {by: bot, sig: []byte("<html>not found</html>"), content: content,
			wantErr: []string{"signature"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, err := release.ParseKey(append(stranger.public(t), tc.by.public(t)...), tc.by.primary())
			if err != nil {
				t.Fatal(err)
			}
			got, err := key.Verify(bytes.NewReader(tc.content), tc.sig, now)
			if tc.wantErr == nil {
				if want := (lock.Signer{Primary: tc.by.primary(), Subkey: tc.wantBy, SignedAt: tc.wantTime}); err != nil || got != want {
					t.Errorf("got %+v %v, want %+v", got, err, want)
				}
				return
			}
			if !errors.Is(err, release.ErrSignature) {
				t.Fatalf("got %v, want ErrSignature", err)
			}
			for _, want := range tc.wantErr {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to contain %q", err, want)
				}
			}
		})
	}
}

func TestAKeyringMustHoldThePinnedKey(t *testing.T) {
	t.Parallel()
	bot, stranger := newBuildbot(t, "bot"), newBuildbot(t, "stranger")
	_, err := release.ParseKey(stranger.public(t), bot.primary())
	if err == nil || !strings.Contains(err.Error(), "does not hold the pinned primary key "+bot.primary()) || !strings.Contains(err.Error(), stranger.primary()) {
		t.Errorf("got %v", err)
	}
	// A subkey's fingerprint is no primary key's.
	if _, err := release.ParseKey(bot.public(t), bot.subkey(1)); err == nil {
		t.Error("a pinned subkey was accepted")
	}
	if _, err := release.ParseKey(bot.public(t), bot.primary()[24:]); err == nil || !strings.Contains(err.Error(), "forged") {
		t.Errorf("a short key ID: got %v", err)
	}
	spaced := strings.ToLower(bot.primary()[:4]) + " " + bot.primary()[4:]
	if _, err := release.ParseKey(bot.public(t), spaced); err != nil {
		t.Errorf("a fingerprint as gpg prints it: %v", err)
	}
}

func write(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestResolveKeepsWhatIsLockedUntilToldOtherwise(t *testing.T) {
	t.Parallel()
	ctx, dir, bot := context.Background(), t.TempDir(), newBuildbot(t, "bot")
	s, err := store.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	image := []byte("image 1")
	write(t, dir, "key.gpg", bot.public(t))
	write(t, dir, "image", image)
	write(t, dir, "image.sig", bot.sign(t, 0, day(2024), image))
	write(t, dir, "agent", []byte("agent 1"))
	wants := []release.Want{
		{ID: lock.FlatcarImage, Source: "image", Signed: &release.SignedBy{Keyring: "key.gpg", Primary: bot.primary()}},
		{ID: lock.Agent, Source: "agent"},
	}
	o := release.Options{Store: s, Dir: dir, Now: day(2026)}
	first, err := release.Resolve(ctx, wants, o)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := first.Lock.Find(lock.FlatcarImage)
	if b.Signer == nil || b.Signer.Subkey != bot.subkey(0) || len(first.Added) != 2 {
		t.Errorf("got %+v", first)
	}

	write(t, dir, "agent", []byte("agent 2"))
	o.Previous = first.Lock
	kept, err := release.Resolve(ctx, wants, o)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(kept.Lock) != fmt.Sprint(first.Lock) || fmt.Sprint(kept.Stale) != "[agent/bootstrapd]" {
		t.Errorf("without update: got %+v", kept)
	}
	o.Update = true
	updated, err := release.Resolve(ctx, wants, o)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(updated.Changed) != "[agent/bootstrapd]" || updated.Stale != nil {
		t.Errorf("with update: got %+v", updated)
	}
	more := append(wants, release.Want{ID: lock.Kubelet, Source: "gone"}, release.Want{ID: lock.Kubeadm, Source: "gone too"})
	if _, err := release.Resolve(ctx, more, o); err == nil || !strings.Contains(err.Error(), "kubernetes/kubelet") || !strings.Contains(err.Error(), "kubernetes/kubeadm") {
		t.Errorf("two missing inputs: got %v, want both named", err)
	}
}

func TestNothingUnverifiedReachesTheStore(t *testing.T) {
	t.Parallel()
	dir, cache, bot := t.TempDir(), t.TempDir(), newBuildbot(t, "bot")
	s, err := store.Open(cache, nil)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "key.gpg", bot.public(t))
	write(t, dir, "image", []byte("tampered"))
	write(t, dir, "image.sig", bot.sign(t, 1, day(2026), []byte("original")))
	wants := []release.Want{{ID: lock.FlatcarImage, Source: "image", Signed: &release.SignedBy{Keyring: "key.gpg", Primary: bot.primary()}}}
	_, err = release.Resolve(context.Background(), wants, release.Options{Store: s, Dir: dir, Now: day(2026)})
	if !errors.Is(err, release.ErrSignature) || !strings.Contains(err.Error(), "locking flatcar/image: fetching "+filepath.Join(dir, "image")) {
		t.Errorf("got %v", err)
	}
	blobs, err := filepath.Glob(filepath.Join(cache, "blobs/sha256/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		if content, _ := os.ReadFile(b); string(content) == "tampered" {
			t.Errorf("the unverified image is in the store as %s", b)
		}
	}
}
