package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
	"github.com/imagectl/imagectl/images/extent"
)

const (
	imageSize = 12 * mib
	diskSize  = 16 * mib
)

// testImage has a GPT with the partition ROOT at 8 MiB, boot code, data and holes.
func testImage() []byte {
	img := make([]byte, imageSize)
	rnd := rand.New(rand.NewPCG(1, 2))
	fill := func(from, to int) {
		for i := from; i < to; i++ {
			img[i] = byte(1 + rnd.IntN(255))
		}
	}
	fill(0, 440)
	h := img[sector:]
	copy(h, "EFI PART")
	binary.LittleEndian.PutUint64(h[72:], 2)
	binary.LittleEndian.PutUint32(h[80:], 128)
	binary.LittleEndian.PutUint32(h[84:], 128)
	e := img[2*sector+8*128:]
	fill(2*sector+8*128, 2*sector+8*128+32)
	binary.LittleEndian.PutUint64(e[32:], 8*mib/sector)
	binary.LittleEndian.PutUint64(e[40:], 10*mib/sector-1)
	for i, c := range utf16.Encode([]rune("ROOT")) {
		binary.LittleEndian.PutUint16(e[56+2*i:], c)
	}
	fill(mib-4096, mib+8192) // across the end of the first MiB
	fill(4*mib, 6*mib)
	fill(8*mib+4096, 8*mib+12288)
	return img
}

type lab struct {
	t      *testing.T
	node   *hosttest.Node
	img    []byte
	blob   []byte
	order  *api.Install
	server *httptest.Server
	// cut says after how many bytes of a response the connection breaks; 0 never.
	cut   int
	hits  int
	serve []byte
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, node: hosttest.New(t), img: testImage()}
	var raw, blob bytes.Buffer
	if err := extent.Write(context.Background(), &raw, bytes.NewReader(l.img), imageSize); err != nil {
		t.Fatal(err)
	}
	rawSum := sha256.Sum256(raw.Bytes())
	if err := extent.Compress(context.Background(), &blob, &raw); err != nil {
		t.Fatal(err)
	}
	l.blob, l.serve = blob.Bytes(), blob.Bytes()
	l.server = httptest.NewServer(http.HandlerFunc(l.handle))
	t.Cleanup(func() {
		// Whoever was killed has read no further, and has closed nothing.
		l.server.CloseClientConnections()
		l.server.Close()
	})
	sum := sha256.Sum256(l.blob)
	l.order = &api.Install{
		ImageUrl: l.server.URL + "/files/x/worker.raw.zst", ImageSha256: hex.EncodeToString(sum[:]), ImageSize: uint64(len(l.blob)),
		Compression: "zstd", RawSize: imageSize, RawSha256: hex.EncodeToString(rawSum[:]),
		Disk: &api.DiskRule{MinSizeBytes: 1}, Machine: "w1", NodeConfig: []byte("{}\n"), ArmingId: "a1",
		Files: []*api.File{{Path: "/etc/systemd/network/10-x.network", Content: []byte("[Match]\n")}},
	}
	write(t, l.node.Root, "/sys/block/vda/size", fmt.Sprint(diskSize/512))
	write(t, l.node.Root, "/sys/block/vda/device/model", "TEST")
	// A disk with a past: no byte of it may shine through.
	write(t, l.node.Root, "/dev/vda", strings.Repeat("stale!!!", diskSize/8))
	l.node.Program("mount", func(c host.Command) ([]byte, error) {
		want := fmt.Sprintf("loop,nosuid,nodev,noexec,offset=%d,sizelimit=%d", 8*mib, 2*mib)
		if c.Argv[4] != want {
			return nil, fmt.Errorf("got mount options %s, want %s", c.Argv[4], want)
		}
		if head := l.disk()[:mib]; !bytes.Equal(head, make([]byte, mib)) {
			t.Error("the first MiB is on the disk before the identity is")
		}
		return nil, nil
	})
	return l
}

func write(t *testing.T, root, name, content string) {
	t.Helper()
	p := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) handle(w http.ResponseWriter, r *http.Request) {
	l.hits++
	if l.cut == 0 {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(l.serve))
		return
	}
	http.ServeContent(&cutWriter{ResponseWriter: w, left: l.cut}, r, "", time.Time{}, bytes.NewReader(l.serve))
}

// cutWriter breaks the connection after some bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	if _, err := c.ResponseWriter.Write(p[:n]); err != nil {
		return 0, err
	}
	if c.left == 0 {
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

func (l *lab) disk() []byte {
	b, err := os.ReadFile(filepath.Join(l.node.Root, "/dev/vda"))
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

func (l *lab) install(progress func(Phase, uint64, uint64)) (Done, error) {
	return l.installCtx(context.Background(), progress)
}

func (l *lab) installCtx(ctx context.Context, progress func(Phase, uint64, uint64)) (Done, error) {
	i := &Installer{Host: l.node.Host, HTTP: l.server.Client(), Log: slog.New(slog.DiscardHandler), Progress: progress}
	return i.Install(ctx, l.order, []*api.File{{Path: "/var/lib/imagectl/agent.key", Mode: 0o600, Content: []byte("KEY")}})
}

func (l *lab) wantInstalled() {
	l.t.Helper()
	got := l.disk()
	if !bytes.Equal(got[:imageSize], l.img) {
		l.t.Error("the disk does not hold the image")
	}
	for name, want := range map[string]string{
		"/etc/imagectl/node.json":           "{}\n",
		"/etc/hostname":                     "w1\n",
		"/var/lib/imagectl/agent.key":       "KEY",
		"/etc/systemd/network/10-x.network": "[Match]\n",
	} {
		b, err := os.ReadFile(filepath.Join(l.node.Root, mountDir, name))
		if err != nil || string(b) != want {
			l.t.Errorf("%s: got %q, %v, want %q", name, b, err, want)
		}
	}
	for name, want := range map[string]fs.FileMode{"/var/lib/imagectl": 0o700, "/var/lib/imagectl/agent.key": 0o600} {
		if st, err := os.Stat(filepath.Join(l.node.Root, mountDir, name)); err != nil || st.Mode().Perm() != want {
			l.t.Errorf("%s: got %v, %v, want mode %v", name, st, err, want)
		}
	}
}

func (l *lab) wantUnbootable() {
	l.t.Helper()
	if !bytes.Equal(l.disk()[:mib], make([]byte, mib)) {
		l.t.Error("the first MiB of the disk is not zero")
	}
}

func TestInstallLeavesExactlyTheImage(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var phases []Phase
	done, err := l.install(func(p Phase, _, _ uint64) {
		if len(phases) == 0 || phases[len(phases)-1] != p {
			phases = append(phases, p)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	l.wantInstalled()
	if got, want := fmt.Sprint(phases), "[writing verifying identity finishing]"; got != want {
		t.Errorf("got phases %s, want %s", got, want)
	}
	if done.Disk.Path != "/dev/vda" || done.Bytes == 0 || done.Bytes > 3*mib {
		t.Errorf("got %+v", done)
	}
	// The old backup GPT is gone.
	if got := l.disk()[diskSize-mib:]; !bytes.Equal(got, make([]byte, mib)) {
		t.Error("the disk's last MiB is not zero")
	}
}

func TestInstallSurvivesBrokenConnections(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cut = len(l.blob)/3 + 1
	if _, err := l.install(nil); err != nil {
		t.Fatal(err)
	}
	l.wantInstalled()
	if l.hits != 3 {
		t.Errorf("got %d requests, want 3", l.hits)
	}
}

func TestAnInterruptedInstallationLeavesNoBootableDiskAndCanStartOver(t *testing.T) {
	t.Parallel()
	for _, at := range []Phase{Writing, Verifying, Identity} {
		t.Run(string(at), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			// A panic is the nearest to SIGKILL that a test can survive.
			func() {
				defer func() {
					if recover() == nil {
						t.Error("it was not interrupted")
					}
				}()
				_, _ = l.install(func(p Phase, _, _ uint64) {
					if p == at {
						panic("killed")
					}
				})
			}()
			l.wantUnbootable()
			if _, err := l.install(nil); err != nil {
				t.Fatal(err)
			}
			l.wantInstalled()
		})
	}
}

func TestInstallRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*lab)
		code   Code
		want   string
	}{
		"an image that changed on the way": {func(l *lab) {
			// The last byte is in the last frame's check sum or data.
			l.serve = bytes.Clone(l.blob)
			l.order.ImageSha256 = strings.Repeat("ab", 32)
		}, WrongImage, "the order says abababababababababababababababababababababababababababababababab: the disk is left without a partition table"},
		"an image that does not unpack": {func(l *lab) {
			l.serve = bytes.Repeat([]byte("x"), len(l.blob))
		}, WrongImage, "cannot be unpacked"},
		"another content":              {func(l *lab) { l.order.RawSha256 = strings.Repeat("cd", 32) }, WrongImage, "unpacks to 12582912 bytes with SHA-256"},
		"an image longer than ordered": {func(l *lab) { l.order.RawSize = 5 * mib }, WrongImage, "the order says that it is 5242880 bytes long"},
		"a disk too small":             {func(l *lab) { l.order.RawSize = 1 << 30 }, DiskTooSmall, "the disk /dev/vda has 16777216 bytes, the image needs 1073741824"},
		"another compression":          {func(l *lab) { l.order.Compression = "xz" }, BadOrder, `the image's compression is "xz"; this agent knows zstd only: netboot a newer installer`},
		"no node configuration":        {func(l *lab) { l.order.NodeConfig = nil }, BadOrder, "the order has no node configuration: the installed system would have nobody to call"},
		"a file outside of ROOT":       {func(l *lab) { l.order.Files[0].Path = "/../etc/x" }, BadOrder, `the file "/../etc/x" to leave in ROOT is no clean absolute path`},
		"a rule that matches nothing":  {func(l *lab) { l.order.Disk = &api.DiskRule{Serial: "nope"} }, NoDisk, `no disk matches the rule (serial nope); this machine has /dev/vda (16777216 bytes, model "TEST", serial "")`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			tc.change(l)
			before := l.disk()
			_, err := l.install(nil)
			var r *RefusedError
			if !errors.As(err, &r) || r.Code != tc.code || !strings.Contains(r.Error(), tc.want) {
				t.Fatalf("got %v, want %s: %s", err, tc.code, tc.want)
			}
			if tc.code == WrongImage {
				l.wantUnbootable()
			} else if name != "a file outside of ROOT" && !bytes.Equal(l.disk(), before) {
				t.Error("a refused installation has written to the disk")
			}
		})
	}
}

func TestADiskThatForgetsIsNoticed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var once bool
	_, err := l.install(func(p Phase, done, _ uint64) {
		if p == Verifying && !once {
			once = true
			f, err := os.OpenFile(filepath.Join(l.node.Root, "/dev/vda"), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte{0}, 5*mib); err != nil {
				t.Fatal(err)
			}
		}
	})
	if err == nil || !strings.Contains(err.Error(), "it is faulty, and is left without a partition table") {
		t.Errorf("got %v", err)
	}
	l.wantUnbootable()
}

func TestADownloadThatNeverComesIsGivenUp(t *testing.T) {
	t.Parallel()
	var waited time.Duration
	d := &download{ctx: context.Background(), client: http.DefaultClient, url: "http://127.0.0.1:1/x", size: 5,
		pause: func(_ context.Context, p time.Duration) error { waited += p; return nil }}
	_, err := io.ReadAll(d)
	if err == nil || !strings.HasPrefix(err.Error(), "downloading http://127.0.0.1:1/x: 0 of 5 bytes: ") {
		t.Errorf("got %v", err)
	}
	if waited < time.Minute {
		t.Errorf("gave up after %v", waited)
	}
}

func FuzzFindPartition(f *testing.F) {
	f.Add(testImage()[:mib])
	f.Fuzz(func(t *testing.T, head []byte) {
		for _, fits := range []func(Partition) bool{Partition.isESP, func(p Partition) bool { return p.label == "ROOT" }} {
			p, err := findPartition(head, "it", fits)
			if off, length := p.bytes(); err == nil && (off < mib || length <= 0) {
				t.Errorf("got %d, %d", off, length)
			}
		}
	})
}
