//go:build upload

package gcp

import (
	"flag"
	"net"
	"net/http"
	"os/exec"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
	"github.com/imagectl/imagectl/test/daemon"
)

var fakeGCS = flag.String("fake-gcs-server", "", "the program fake-gcs-server, a storage of another hand")

// A file of several chunks goes to a bucket of another hand's; what is there then is
// compared by the CRC32C that the server computes. It is not cut in the middle, for
// fake-gcs-server 1.56.1 takes the question how much arrived for the end of the file.
func TestAStorageOfAnotherHandHasTheFile(t *testing.T) {
	if *fakeGCS == "" {
		t.Fatal("-fake-gcs-server is not set; run this through make upload-test")
	}
	address := daemon.Address(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	at := "http://" + address
	cmd := exec.Command(*fakeGCS, "-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory", "-external-url", at, "-public-host", address, "-data", "")
	daemon.Start(t, cmd, "make upload-test installs it", func() error {
		resp, err := http.Get(at + "/storage/v1/b")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	faults := &uploadtest.Faults{}
	target, err := New(Config{
		Project: project, Bucket: bucket, Credentials: "a-token", Endpoint: at, Transport: faults.Transport(http.DefaultTransport), Tries: 1, Wait: wait, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	target.unit = testUnit
	if err := target.call(t.Context(), http.MethodPost, at+"/storage/v1/b?project="+project, map[string]string{"name": bucket}, nil); err != nil {
		t.Fatal(err)
	}
	img, j := large(t, target), &uploadtest.Journal{}
	faults.Heal() // counts anew
	left, err := target.file(t.Context(), img, j, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if n := faults.Calls(); n < 4 {
		t.Errorf("it took %d calls, want the session and several chunks", n)
	}
	all, err := target.objects(t.Context())
	if err != nil || len(all) != 1 || all[0].Name != left.Name || all[0].Metadata[upload.LabelDigest] != "sha256:"+img.Digest {
		t.Errorf("in the bucket are %+v, %v", all, err)
	}
	if err := target.Clean(t.Context(), left); err != nil {
		t.Error(err)
	}
	if there, err := target.look(t.Context(), left.Name); err != nil || there != nil {
		t.Errorf("after the cleanup there is %+v, %v", there, err)
	}
}
