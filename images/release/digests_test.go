package release_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
	"github.com/imagectl/imagectl/images/store"
)

// digests is what Flatcar writes beside a file.
func digests(name string, content []byte) string {
	return fmt.Sprintf("# MD5 HASH\n%x  %s\n# SHA1 HASH\n%x  %s\n# SHA512 HASH\n%x  %s\n",
		md5.Sum(content), name, sha1.Sum(content), name, sha512.Sum512(content), name)
}

func (b buildbot) clearSign(t *testing.T, subkey int, made time.Time, text string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := clearsign.EncodeMulti(&buf, []*packet.PrivateKey{b.Subkeys[subkey].PrivateKey}, at(made, 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(buf.Bytes(), '\n')
}

func TestClearSignedDigests(t *testing.T) {
	t.Parallel()
	bot, stranger := newBuildbot(t, "bot"), newBuildbot(t, "stranger")
	content := []byte("image")
	text := digests("image.bz2", content)
	good := bot.clearSign(t, 1, day(2026), text)
	change := func(old, replacement string) []byte {
		t.Helper()
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("the file has no %q", old)
		}
		return bytes.Replace(good, []byte(old), []byte(replacement), 1)
	}
	// A signature over a file's bytes, in the place of one over text.
	var binary bytes.Buffer
	w, err := armor.Encode(&binary, "PGP SIGNATURE", nil)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(bot.sign(t, 1, day(2026), []byte(strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\r\n"))))
	w.Close()
	sha512Line := strings.Split(text, "\n")[5]
	for name, tc := range map[string]struct {
		file     []byte
		file512  string // which file is looked for
		wantBy   string
		wantText []string
	}{
		"by the current subkey":              {file: good, wantBy: bot.subkey(1)},
		"by a subkey that has since expired": {file: bot.clearSign(t, 0, day(2024), text), wantBy: bot.subkey(0)},
		"with the line ends of Windows":      {file: bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), wantBy: bot.subkey(1)},
		"of several files":                   {file: bot.clearSign(t, 1, day(2026), digests("other", nil)+text), wantBy: bot.subkey(1)},
		"that names a digest twice":          {file: bot.clearSign(t, 1, day(2026), text+text), wantBy: bot.subkey(1)},
		"by a stranger": {file: stranger.clearSign(t, 1, day(2026), text),
			wantText: []string{"made by key " + stranger.subkey(1), "neither the pinned primary key " + bot.primary()}},
		"by a subkey that had expired already": {file: bot.clearSign(t, 0, day(2026), text), wantText: []string{"had expired on 2025-03-06"}},
		"by a subkey before it existed":        {file: bot.clearSign(t, 1, day(2024), text), wantText: []string{"exists since 2025-03-07"}},
		"in the future":                        {file: bot.clearSign(t, 1, day(2027).AddDate(0, 0, -10), text), wantText: []string{"in the future"}},
		"with another digest":                  {file: change(sha512Line[:8], "00000000"), wantText: []string{"changed or cut off"}},
		"with another name":                    {file: change("  image.bz2", "  other.bz2"), wantText: []string{"changed or cut off"}},
		"with a line less":                     {file: change(sha512Line+"\n", ""), wantText: []string{"changed or cut off"}},
		"with a line more":                     {file: change(sha512Line, sha512Line+"\n"+sha512Line), wantText: []string{"changed or cut off"}},
		"with text before it":                  {file: append([]byte(text), good...), wantText: []string{"text before its signed part"}},
		"with an empty line before it":         {file: append([]byte("\n"), good...), wantText: []string{"text before its signed part"}},
		"with text behind it":                  {file: append(bytes.Clone(good), text...), wantText: []string{"text behind its signed part"}},
		"with a second message behind it":      {file: append(bytes.Clone(good), good...), wantText: []string{"text behind its signed part"}},
		"with a header of a stranger's":        {file: change("Hash: SHA256", "Comment: # SHA512 HASH"), wantText: []string{"no clear-signed text"}},
		"that is cut off":                      {file: good[:len(good)-60], wantText: []string{"no clear-signed text"}},
		"that is not signed":                   {file: []byte(text), wantText: []string{"no clear-signed text"}},
		"that is empty":                        {file: nil, wantText: []string{"no clear-signed text"}},
		"that is a page of HTML":               {file: []byte("<html>not found</html>"), wantText: []string{"no clear-signed text"}},
		"with a signature over bytes": {file: append(bytes.Clone(good[:bytes.Index(good, []byte("-----BEGIN PGP SIGNATURE"))]), binary.Bytes()...),
			wantText: []string{"it is of type 0, want 1"}},
		"of another file":             {file: bot.clearSign(t, 1, day(2026), digests("other.bz2", content)), wantText: []string{"signed digests are of other.bz2, not of image.bz2"}},
		"of other content":            {file: bot.clearSign(t, 1, day(2026), digests("image.bz2", nil)), wantText: []string{"the file is not what was signed"}},
		"with two digests of a file":  {file: bot.clearSign(t, 1, day(2026), text+digests("image.bz2", nil)), wantText: []string{"line 8 gives image.bz2 another MD5"}},
		"without SHA512":              {file: bot.clearSign(t, 1, day(2026), text[:strings.Index(text, "# SHA512")]), wantText: []string{"there is no SHA512 digest"}},
		"with SHA512 called SHA1":     {file: bot.clearSign(t, 1, day(2026), strings.Replace(text, "# SHA512", "# SHA1", 1)), wantText: []string{"has 128 digits, SHA1 has 40"}},
		"with a digest of some kind":  {file: bot.clearSign(t, 1, day(2026), text+"# CRC32 HASH\n"), wantText: []string{"kind CRC32"}},
		"with digests of no kind":     {file: bot.clearSign(t, 1, day(2026), sha512Line+"\n"), wantText: []string{"line 1 is neither a heading nor a digest"}},
		"with a name in a directory":  {file: bot.clearSign(t, 1, day(2026), digests("../image.bz2", content)), wantText: []string{"line 2 is neither"}},
		"with a comment":              {file: bot.clearSign(t, 1, day(2026), "# good\n"+text), wantText: []string{"line 1 is neither"}},
		"that is far too large":       {file: bytes.Repeat(good, 1000), wantText: []string{"more than 262144"}},
		"with a line that has dashes": {file: bot.clearSign(t, 1, day(2026), "-----BEGIN\n"+text), wantText: []string{"line 1 is neither"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, err := release.ParseKey(append(stranger.public(t), bot.public(t)...), bot.primary())
			if err != nil {
				t.Fatal(err)
			}
			sums, signer, err := key.VerifyDigests(tc.file, day(2026).AddDate(0, 6, 0))
			if err == nil {
				err = sums.Check("image.bz2", bytes.NewReader(content))
			}
			if tc.wantBy != "" {
				if err != nil || signer.Subkey != tc.wantBy || signer.Primary != bot.primary() {
					t.Errorf("got %+v %v, want %s", signer, err, tc.wantBy)
				}
				return
			}
			if !errors.Is(err, release.ErrSignature) {
				t.Fatalf("got %v, want ErrSignature", err)
			}
			for _, want := range tc.wantText {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to contain %q", err, want)
				}
			}
		})
	}
}

func TestResolveTakesDigestsWhereThereIsNoSignatureOrTheUserSaysSo(t *testing.T) {
	t.Parallel()
	bot := newBuildbot(t, "bot")
	image := []byte("image")
	list := bot.clearSign(t, 0, day(2024), digests("image.bz2", image))
	sig := bot.sign(t, 1, day(2026), image)
	bad := bot.sign(t, 1, day(2026), []byte("another"))
	for name, tc := range map[string]struct {
		form   release.Form
		files  map[string][]byte
		wantBy string
		want   error
		text   []string
	}{
		"a signature and digests":     {release.Any, map[string][]byte{".sig": sig, ".DIGESTS.asc": list}, bot.subkey(1), nil, nil},
		"digests alone":               {release.Any, map[string][]byte{".DIGESTS.asc": list}, bot.subkey(0), nil, nil},
		"digests are asked for":       {release.Digests, map[string][]byte{".sig": bad, ".DIGESTS.asc": list}, bot.subkey(0), nil, nil},
		"a signature is asked for":    {release.Detached, map[string][]byte{".DIGESTS.asc": list}, "", fs.ErrNotExist, []string{"image.bz2.sig"}},
		"digests are, and not there":  {release.Digests, map[string][]byte{".sig": sig}, "", fs.ErrNotExist, []string{"image.bz2.DIGESTS.asc"}},
		"a bad signature and digests": {release.Any, map[string][]byte{".sig": bad, ".DIGESTS.asc": list}, "", release.ErrSignature, []string{"changed or cut off"}},
		"neither":                     {release.Any, nil, "", fs.ErrNotExist, []string{"no signature that can be used", "image.bz2.sig", "image.bz2.DIGESTS.asc"}},
		"digests of another image": {release.Any, map[string][]byte{".DIGESTS.asc": bot.clearSign(t, 0, day(2024), digests("image.bz2", []byte("another")))}, "",
			release.ErrSignature, []string{"the file is not what was signed"}},
	} {
		for _, kind := range []string{"path", "URL"} {
			t.Run(name+" by "+kind, func(t *testing.T) {
				t.Parallel()
				dir, cache := t.TempDir(), t.TempDir()
				write(t, dir, "key.gpg", bot.public(t))
				write(t, dir, "image.bz2", image)
				for suffix, content := range tc.files {
					write(t, dir, "image.bz2"+suffix, content)
				}
				source := "image.bz2"
				if kind == "URL" {
					srv := httptest.NewServer(http.FileServer(http.Dir(dir)))
					t.Cleanup(srv.Close)
					source = srv.URL + "/image.bz2"
				}
				s, err := store.Open(cache, nil)
				if err != nil {
					t.Fatal(err)
				}
				wants := []release.Want{{ID: lock.FlatcarImage, Source: source, Signed: &release.SignedBy{Keyring: "key.gpg", Primary: bot.primary(), Form: tc.form}}}
				got, err := release.Resolve(context.Background(), wants, release.Options{Store: s, Dir: dir, Now: day(2026).AddDate(0, 6, 0)})
				if tc.want == nil {
					if err != nil {
						t.Fatal(err)
					}
					if b, _ := got.Lock.Find(lock.FlatcarImage); b.Signer == nil || b.Signer.Subkey != tc.wantBy {
						t.Errorf("got %+v, want subkey %s", b.Signer, tc.wantBy)
					}
					return
				}
				if !errors.Is(err, tc.want) {
					t.Fatalf("got %v, want %v", err, tc.want)
				}
				for _, want := range tc.text {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("got %q, want it to contain %q", err, want)
					}
				}
				blobs, err := filepath.Glob(filepath.Join(cache, "blobs/sha256/*/*"))
				if err != nil {
					t.Fatal(err)
				}
				for _, b := range blobs {
					if content, _ := os.ReadFile(b); bytes.Equal(content, image) {
						t.Errorf("the unverified image is in the store as %s", b)
					}
				}
			})
		}
	}
}

func TestAMirrorStepsInAndItsAbsenceIsTold(t *testing.T) {
	t.Parallel()
	dir, bot := t.TempDir(), newBuildbot(t, "bot")
	image := []byte("image")
	for name, content := range map[string][]byte{
		"tampered/image.bz2": []byte("imagf"), "tampered/image.bz2.sig": bot.sign(t, 1, day(2026), image),
		"good/image.bz2": image, "good/image.bz2.sig": bot.sign(t, 1, day(2026), image),
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, dir, name, content)
	}
	write(t, dir, "key.gpg", bot.public(t))
	s, err := store.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := release.Want{
		ID: lock.FlatcarImage, Source: "gone/image.bz2", Mirrors: []string{"tampered/image.bz2", "good/image.bz2"},
		Signed: &release.SignedBy{Keyring: "key.gpg", Primary: bot.primary()},
	}
	var skipped []string
	o := release.Options{Store: s, Dir: dir, Now: day(2026), Watch: func(lock.ID) release.Watch {
		return release.Watch{Skipped: func(err error) { skipped = append(skipped, err.Error()) }}
	}}
	got, err := release.Resolve(context.Background(), []release.Want{want}, o)
	if err != nil {
		t.Fatal(err)
	}
	// The signature's first source, then the image's first two.
	if len(skipped) != 3 || !strings.Contains(skipped[2], "changed or cut off") {
		t.Errorf("skipped: %q", skipped)
	}
	b, _ := got.Lock.Find(lock.FlatcarImage)
	if b.Source != want.Source || fmt.Sprint(b.Mirrors) != fmt.Sprint(want.Mirrors) {
		t.Errorf("got %+v", b)
	}
	// A colleague with an empty cache builds from the lock file alone.
	if s, err = store.Open(t.TempDir(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := release.Fetch(context.Background(), s, dir, b, release.Watch{}); err != nil {
		t.Error(err)
	}
	// Other mirrors later change the lock, not what is locked.
	o.Previous, want.Mirrors = got.Lock, want.Mirrors[1:]
	again, err := release.Resolve(context.Background(), []release.Want{want}, o)
	if err != nil {
		t.Fatal(err)
	}
	if now, _ := again.Lock.Find(lock.FlatcarImage); now.SHA256 != b.SHA256 || len(now.Mirrors) != 1 || len(again.Changed) != 1 {
		t.Errorf("got %+v", again)
	}
}
