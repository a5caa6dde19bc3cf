package opennebula_test

import (
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/opennebula"
	"github.com/imagectl/imagectl/images/upload/opennebula/onedtest"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// A cleanup on one machine leaves the upload alone that another machine is at,
// though both would make an image of the same name.
func TestCleanupLeavesTheUploadOfAnotherMachine(t *testing.T) {
	t.Parallel()
	one := onedtest.Start(t)
	one.Hold()
	tg := opennebula.New(config(t, one))
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 5)
	key := upload.Key{Target: "one", Image: img}

	theirs, err := upload.OpenJournal(t.TempDir(), key)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := upload.Run(t.Context(), tg, img, theirs, func(upload.Event) {}, true)
		done <- err
	}()
	for len(one.Images(onedtest.Session)) == 0 {
		time.Sleep(time.Millisecond)
	}

	state := t.TempDir()
	ours, err := upload.OpenJournal(state, key)
	if err != nil {
		t.Fatal(err)
	}
	// What is left by a process that died before oned heard of it.
	if err := ours.Write(upload.Leftover{Kind: "image", Name: "prod-worker-" + img.Version, Note: "ours"}); err != nil {
		t.Fatal(err)
	}
	if err := ours.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := upload.Cleanup(t.Context(), tg, state, "one"); err != nil {
		t.Error(err)
	}
	if left := one.Images(onedtest.Session); len(left) != 1 {
		t.Errorf("the other machine's upload is gone: %v", left)
	}
	one.Release()
	if err := <-done; err != nil {
		t.Errorf("the other machine's upload: %v", err)
	}
	if err := theirs.Close(); err != nil {
		t.Error(err)
	}
}
