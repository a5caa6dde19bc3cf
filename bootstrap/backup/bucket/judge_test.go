//go:build upload

package bucket

import (
	"context"
	"flag"
	"net/http"
	"os/exec"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/imagectl/imagectl/test/daemon"
)

var versitygw = flag.String("versitygw", "", "the program versitygw, a store of another hand")

func TestARealStoreKeepsBackups(t *testing.T) {
	if *versitygw == "" {
		t.Fatal("-versitygw is not set; run this through make upload-test")
	}
	address := daemon.Address(t)
	cmd := exec.Command(*versitygw, "--quiet", "--port", address, "--access", "server", "--secret", "secret-of-the-server", "posix", t.TempDir())
	daemon.Start(t, cmd, "make upload-test installs it", func() error {
		resp, err := http.Get("http://" + address + "/")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	c := Config{Endpoint: "http://" + address, Bucket: "vault", Region: "us-east-1", Prefix: "backups", AccessKey: "server", SecretKey: "secret-of-the-server"}
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.client.MakeBucket(context.Background(), "vault", minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	try(t, c)
}
