package opennebula_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/opennebula"
	"github.com/imagectl/imagectl/images/upload/opennebula/onedtest"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// Another user uploads the very same disk with the very same record, and everybody may
// use it: bytes that nobody of ours has compared. Ours is sent all the same, our template
// starts ours, and rollback finds nothing.
func TestAnotherUsersImageIsNeverOurs(t *testing.T) {
	t.Parallel()
	one := onedtest.Start(t)
	conf := config(t, one)
	theirs := conf
	theirs.Session = onedtest.Other
	old, img := uploadtest.Image(t, store.QCOW2, "prod-worker", 4), uploadtest.Image(t, store.QCOW2, "prod-worker", 5)
	for _, i := range []upload.Image{old, img} {
		if _, err := run(t, opennebula.New(theirs), i); err != nil {
			t.Fatal(err)
		}
	}
	tg := opennebula.New(conf)
	if p, err := tg.Preflight(t.Context(), img); err != nil || p.Found != nil || len(p.Steps) == 0 {
		t.Errorf("the plan is %+v, %v, want an upload", p, err)
	}
	out, err := run(t, tg, img)
	if err != nil || out.Unchanged || !out.Promoted {
		t.Fatalf("got %+v, %v, want an image of our own", out, err)
	}
	if tm := one.Template(onedtest.Session, "prod-worker"); !strings.Contains(tm, "<IMAGE_ID>"+out.Object.ID+"<") {
		t.Errorf("our template starts another's image:\n%s", tm)
	}
	all, err := tg.List(t.Context(), "")
	if err != nil || len(all) != 1 || all[0].ID != out.Object.ID {
		t.Errorf("listed is %+v, %v, want ours alone", all, err)
	}
	if _, to, err := upload.Rollback(t.Context(), tg, "prod-worker"); !errors.Is(err, upload.ErrNotFound) {
		t.Errorf("rolled back to %+v, %v, want that there is nothing older", to, err)
	}
	foreign, err := opennebula.New(theirs).List(t.Context(), "")
	if err != nil || len(foreign) != 2 {
		t.Fatalf("they list %+v, %v", foreign, err)
	}
	for _, o := range foreign {
		if err := tg.Promote(t.Context(), o); !errors.Is(err, upload.ErrTaken) {
			t.Errorf("promoting theirs by its number: %v, want ErrTaken", err)
		}
		if err := tg.Delete(t.Context(), o); !errors.Is(err, upload.ErrTaken) {
			t.Errorf("deleting theirs by its number: %v, want ErrTaken", err)
		}
		if _, err := tg.Verify(t.Context(), o, img); !errors.Is(err, upload.ErrTaken) {
			t.Errorf("verifying theirs by its number: %v, want ErrTaken", err)
		}
	}
}

// Where the configuration names a group, its members have one set of images.
func TestMembersOfAGroupShareImages(t *testing.T) {
	t.Parallel()
	one := onedtest.Start(t)
	conf := config(t, one)
	conf.Group = onedtest.Group
	theirs := conf
	theirs.Session = onedtest.Other
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 5)
	first, err := run(t, opennebula.New(theirs), img)
	if err != nil {
		t.Fatal(err)
	}
	again, err := run(t, opennebula.New(conf), img)
	if err != nil || !again.Unchanged || again.Object.ID != first.Object.ID {
		t.Errorf("got %+v, %v, want that %s is there already", again, err, first.Object.ID)
	}
	conf.Group = "another"
	if other, err := run(t, opennebula.New(conf), img); err != nil || other.Unchanged {
		t.Errorf("got %+v, %v, want an image of our own", other, err)
	}
}

// Sunstone's Clone copies our attributes: the copy is the user's own, and in nobody's way.
func TestACloneOfTheTemplateIsInNobodysWay(t *testing.T) {
	t.Parallel()
	one := onedtest.Start(t)
	tg := opennebula.New(config(t, one))
	first, err := run(t, tg, uploadtest.Image(t, store.QCOW2, "prod-worker", 5))
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Clone(onedtest.Session, "prod-worker", "prod-worker-tuned"); err != nil {
		t.Fatal(err)
	}
	before := one.Template(onedtest.Session, "prod-worker-tuned")
	second, err := run(t, tg, uploadtest.Image(t, store.QCOW2, "prod-worker", 6))
	if err != nil || !second.Promoted {
		t.Fatalf("promoting beside a clone: %+v, %v", second, err)
	}
	if _, to, err := upload.Rollback(t.Context(), tg, "prod-worker"); err != nil || to.ID != first.Object.ID {
		t.Errorf("rolled back to %+v, %v, want %s", to, err, first.Object.ID)
	}
	if after := one.Template(onedtest.Session, "prod-worker-tuned"); after != before {
		t.Errorf("the clone was\n%s\nand is\n%s", before, after)
	}
	// What it starts stays, whoever's template it is.
	if err := tg.Promote(t.Context(), second.Object); err != nil {
		t.Fatal(err)
	}
	if err := tg.Delete(t.Context(), first.Object); !errors.Is(err, upload.ErrInUse) {
		t.Errorf("deleting what the clone starts: %v, want ErrInUse", err)
	}
}

// A journal whose image another user made, and which we may not see, is kept.
func TestCleanupBySomebodyElseForgetsNothing(t *testing.T) {
	t.Parallel()
	one := onedtest.Start(t)
	conf := config(t, one)
	out, err := run(t, opennebula.New(conf), uploadtest.Image(t, store.QCOW2, "prod-worker", 5))
	if err != nil {
		t.Fatal(err)
	}
	one.Hide(out.Object.ID)
	conf.Session = onedtest.Other
	left := upload.Leftover{Kind: "image", Name: "prod-worker-1", ID: out.Object.ID, Note: "a mark"}
	if err := opennebula.New(conf).Clean(t.Context(), left); !errors.Is(err, upload.ErrAuth) {
		t.Errorf("got %v, want ErrAuth", err)
	}
	left.ID = "999"
	if err := opennebula.New(conf).Clean(t.Context(), left); err != nil {
		t.Errorf("what is gone: %v", err)
	}
}
