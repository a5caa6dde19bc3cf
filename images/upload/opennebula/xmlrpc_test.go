package opennebula

import (
	"errors"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/upload"
)

func TestRefusalsAreToldApartByCodeAndWords(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		code int
		text string
		want error
	}{
		{256, "User couldn't be authenticated, aborting call.", upload.ErrAuth},
		{512, "User [2] : Not authorized to perform CREATE IMAGE.", upload.ErrAuth},
		{512, "Template includes a restricted attribute SOURCE.", upload.ErrAuth},
		{512, "User [2] : limit of 1 reached for IMAGES quota in DATASTORE with ID 1.", upload.ErrSpace},
		{512, "Image is locked", upload.ErrInUse},
		{1024, "Error getting image [7].", upload.ErrNotFound},
		{2048, "Cannot delete image. There are 1 VMs using it.", upload.ErrInUse},
		{2048, "Not enough space in datastore", upload.ErrSpace},
		{16384, "NAME is already taken by IMAGE 3.", upload.ErrTaken},
		{8192, "Unsupported remote image format", upload.ErrServer},
		{4096, "method is not known", upload.ErrServer},
	} {
		err := error(&refusal{tt.code, tt.text})
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%d %s: %v, want %v", tt.code, tt.text, errors.Unwrap(err), tt.want)
		}
	}
}

func TestValuesAreQuotedOrRefused(t *testing.T) {
	t.Parallel()
	var a attributes
	a.set("PATH", "http://10.0.0.1:8099/abc/prod-worker.qcow2")
	if got, err := a.text(); err != nil || got != "PATH=\"http://10.0.0.1:8099/abc/prod-worker.qcow2\"\n" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{`a" SOURCE="/dev/sda`, `a\`, "a\nb"} {
		var a attributes
		a.set("NAME", bad)
		if _, err := a.text(); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func FuzzDecodeReply(f *testing.F) {
	f.Add([]byte("<methodResponse><params><param><value><array><data><value><boolean>1</boolean></value><value><i4>7</i4></value><value><i4>0</i4></value></data></array></value></param></params></methodResponse>"))
	f.Add([]byte("<methodResponse><params><param><value><array><data><value><boolean>0</boolean></value><value><string>no</string></value><value><i4>2048</i4></value></data></array></value></param></params></methodResponse>"))
	f.Add([]byte("<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>-501</int></value></member></struct></value></fault></methodResponse>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		text, no, err := decodeReply(b)
		if (no != nil || err != nil) && text != "" {
			t.Errorf("%q together with %v %v", text, no, err)
		}
	})
}
