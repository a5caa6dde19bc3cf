package serverapi

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Nodes take an expired certificate from nobody but those who are admins now; who that is they
// are told with their directives, and with which key.
func TestControlPlanesAreToldWhoIsAnAdmin(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	cp, w := r.approvedMachine("cp1", "52:54:00:00:00:01"), r.approvedMachine("w1", "52:54:00:00:00:02")
	told := func(f *fake) (out []string) {
		for _, a := range f.sync(running()).GetRun().GetAdmins() {
			out = append(out, fmt.Sprintf("%s %.4s", a.GetName(), a.GetKey()))
		}
		return out
	}
	expect := func(when string, want ...string) {
		t.Helper()
		if got := told(cp); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
	}
	expect("the local one", "root ")
	ada, bob := r.human("ada"), r.human("bob")
	if err := ada.let(root, pki.RoleAdmin, false); err != nil {
		t.Fatal(err)
	}
	if err := bob.let(root, pki.RoleOperator, false); err != nil {
		t.Fatal(err)
	}
	expect("another one, and somebody else", "ada "+fingerprint(ada.cert.Leaf)[:4], "root ")
	if got := told(w); len(got) > 0 {
		t.Errorf("a worker is told of %q", got)
	}
	if o := r.revokeOperator(root, "ada"); !o.GetOk() {
		t.Fatal(o)
	}
	expect("who was revoked is none", "root ")
}

// Whoever found the local admin's file has a certificate that nothing but its number tells
// from the admin's own: that stays on the list after its end.
func TestWhatIsRevokedOfTheLocalAdminIsNotForgotten(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	ada := r.human("ada")
	if err := ada.let(root, pki.RoleAdmin, false); err != nil {
		t.Fatal(err)
	}
	var lost string
	if err := r.change(t.Context(), r.self(), func(c *change) error {
		held, err := c.certificates("operator/root")
		lost = held[0].Serial
		return err
	}); err != nil {
		t.Fatal(err)
	}
	r.revokeSerials(lost, pki.Serial(ada.cert.Leaf))
	listed := func(at time.Time) (out []string) {
		t.Helper()
		if err := r.change(t.Context(), r.self(), func(c *change) error {
			c.now, out = at, nil
			all, err := c.readRevoked()
			if err != nil {
				return err
			}
			if err := r.sign(c, &all, caImagectl); err != nil {
				return err
			}
			for _, e := range all.Lists[caImagectl].Entries {
				out = append(out, string(e.Holder))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(out)
		return out
	}
	now := time.Now()
	if got := listed(now); !slices.Equal(got, []string{"operator/ada", "operator/root"}) {
		t.Errorf("got %q", got)
	}
	if got := listed(now.Add(365 * 24 * time.Hour)); !slices.Equal(got, []string{"operator/root"}) {
		t.Errorf("a year later: got %q", got)
	}
	// Now the name counts for nothing.
	if o := r.revokeOperator(r.operator(pki.RoleAdmin), "root"); !o.GetOk() {
		t.Fatal(o)
	}
	if got := listed(now.Add(366 * 24 * time.Hour)); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}
