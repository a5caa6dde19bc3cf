package bmc

import (
	"context"
	"slices"
	"strings"
	"testing"
)

// redfishQuirks plays each quirk back: a BMC that has it, and what is done with it.
// without says that the same fails when the quirk is not known, which shows that
// the fake really refuses.
func redfishQuirks() map[string]struct {
	is      func(*fake)
	do      func(context.Context, Controller) error
	without bool
	booted  []string
} {
	pxe := func(ctx context.Context, c Controller) error {
		return Boot(ctx, c, noPause, PXE, always, func(string) {})
	}
	insert := func(urls ...string) func(context.Context, Controller) error {
		return func(ctx context.Context, c Controller) error {
			for _, u := range urls {
				if err := c.InsertMedia(ctx, u); err != nil {
					return err
				}
			}
			return Boot(ctx, c, noPause, CD, always, func(string) {})
		}
	}
	return map[string]struct {
		is      func(*fake)
		do      func(context.Context, Controller) error
		without bool
		booted  []string
	}{
		"supermicro-full-override": {
			is: func(f *fake) { f.manufacturer, f.fullOverride, f.power = "Supermicro", true, "On" },
			do: pxe, without: true, booted: []string{"Pxe"},
		},
		"ami-full-override": {
			is: func(f *fake) { f.manufacturer, f.fullOverride = "ASRockRack", true },
			do: pxe, without: true, booted: []string{"Pxe"},
		},
		"refuses-during-post": {
			is: func(f *fake) { f.manufacturer, f.post = "HPE", 4 },
			do: pxe, without: true, booted: []string{"Pxe"},
		},
		"busy-service": {
			is: func(f *fake) { f.busyPatches = 3 },
			do: pxe, without: true, booted: []string{"Pxe"},
		},
		"idrac10-conflict-after-off": {
			is: func(f *fake) { f.manufacturer, f.manager, f.conflict, f.power = "Dell Inc.", "17G Monolithic", 6, "On" },
			do: pxe, without: true, booted: []string{"Pxe"},
		},
		"idrac-stale-media": {
			is: func(f *fake) { f.manufacturer, f.staleLooks, f.media["1"] = "Dell Inc.", 2, "http://10.0.0.1/a.iso" },
			do: insert("http://10.0.0.1/b.iso"), without: true, booted: []string{"Cd"},
		},
		"idrac10-slot-1": {
			is: func(f *fake) {
				f.manufacturer, f.manager, f.slots, f.onlySlot = "Dell Inc.", "17G Monolithic", []string{"2", "1"}, "1"
			},
			do: insert("http://10.0.0.1/a.iso"), without: true, booted: []string{"Cd"},
		},
		"ilo-media-at-manager": {
			is: func(f *fake) {
				f.manufacturer, f.mediaAtManager, f.mediaAtBoth, f.systemSlotsBroken = "HPE", true, true, true
			},
			do: insert("http://10.0.0.1/a.iso"), without: true, booted: []string{"Cd"},
		},
		"supermicro-plain-media-url": {
			is: func(f *fake) { f.manufacturer, f.plainURL, f.fullOverride = "Supermicro", true, true },
			do: insert("http://10.0.0.1/cp1-52-54-00-00-00-01.iso"), booted: []string{"Cd"},
		},
		"lenovo-no-disk-order": {
			is: func(f *fake) { f.manufacturer, f.power = "Lenovo", "On" },
			do: pxe, booted: []string{"Pxe"},
		},
		"firmware-update-reorders-boot": {
			do: pxe, booted: []string{"Pxe"},
		},
	}
}

func TestEveryQuirkIsPlayedBack(t *testing.T) {
	quirks, err := Quirks()
	if err != nil {
		t.Fatal(err)
	}
	cases := redfishQuirks()
	for _, q := range quirks {
		if q.Match.Kind == IPMI {
			continue // ipmi_test.go
		}
		tc, ok := cases[q.ID]
		if !ok {
			t.Errorf("no test plays back %s", q.ID)
			continue
		}
		try := func(t *testing.T, known []Quirk) ([]string, []string, error) {
			f := newFake()
			if tc.is != nil {
				tc.is(f)
			}
			c, err := openRedfish(t.Context(), f.start(t), known, noPause)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			err = tc.do(t.Context(), c)
			return f.starts(), f.happened("override"), err
		}
		t.Run(q.ID, func(t *testing.T) {
			t.Parallel()
			booted, overrides, err := try(t, quirks)
			if err != nil || !slices.Equal(booted, tc.booted) {
				t.Errorf("got %v, booted from %v, want %v", err, booted, tc.booted)
			}
			for _, o := range overrides {
				if strings.Contains(o, "Order") {
					t.Errorf("a boot order was changed: %s", o)
				}
			}
			if !tc.without {
				return
			}
			others := slices.DeleteFunc(slices.Clone(quirks), func(o Quirk) bool { return o.ID == q.ID })
			if booted, _, err := try(t, others); err == nil && slices.Equal(booted, tc.booted) {
				t.Errorf("without the quirk it works too: the fake does not have it, or it is not needed")
			}
		})
	}
}

func TestQueryInAMediaURLIsRefusedBeforeItFails(t *testing.T) {
	f := newFake()
	f.manufacturer, f.plainURL = "Supermicro", true
	c := open(t, f)
	for _, u := range []string{"http://10.0.0.1/a.iso?x=1", "http://10.0.0.1/52:54:00:00:00:01.iso"} {
		err := c.InsertMedia(t.Context(), u)
		if err == nil || !strings.HasSuffix(err.Error(), "this BMC does not understand a query or a colon in \""+u+"\"; serve it under a plain name") {
			t.Errorf("%s: got %v", u, err)
		}
	}
}

// What no vendor name goes with, because all of them may do it.
func TestBootIsAskedForInTheFormThatTheBMCTakes(t *testing.T) {
	for name, is := range map[string]func(*fake){
		"a tag is demanded":                  func(f *fake) { f.wantTag = true },
		"its own tags are refused":           func(f *fake) { f.badTag = true },
		"its own tags are refused, demanded": func(f *fake) { f.badTag, f.wantTag = true, true },
		"once is refused a second time":      func(f *fake) { f.unchangedIsBad, f.enabled, f.target = true, "Once", "Cd" },
		"the same override is refused":       func(f *fake) { f.unchangedIsBad, f.target, f.enabled = true, "Pxe", "Once" },
		"a persistent override is set":       func(f *fake) { f.unchangedIsBad, f.target, f.enabled = true, "Pxe", "Continuous" },
		"the mode is read only":              func(f *fake) { f.modeIsReadOnly = true },
		"only the settings change":           func(f *fake) { f.settings = true },
		"it is forgotten with the power":     func(f *fake) { f.forgetsWhenOff, f.power = true, "On" },
		"the service hiccups":                func(f *fake) { f.unavailable = 2 },
		"older media parameters":             func(f *fake) { f.onlyImage = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake()
			is(f)
			c := open(t, f)
			if err := c.InsertMedia(t.Context(), "http://10.0.0.1/a.iso"); err != nil {
				t.Error(err)
			}
			if err := Boot(t.Context(), c, noPause, PXE, always, func(string) {}); err != nil || !slices.Equal(f.starts(), []string{"Pxe"}) {
				t.Errorf("got %v, booted from %v", err, f.starts())
			}
		})
	}
}

func TestQuirksAreReadStrictly(t *testing.T) {
	for text, want := range map[string]string{
		"- {id: a}": "reading BMC quirks: a has no evidence",
		"- {id: a, evidence: x}\n- {id: a, evidence: x}": `reading BMC quirks: id "a" is empty or twice`,
		"- {id: a, evidence: x, effects: {}}":            "field effects not found",
		"- {id: a, evidence: x, match: {vendor: '('}}":   "missing closing )",
	} {
		if _, err := parseQuirks([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}
