package serverapi

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

func requestID(t *testing.T, err error) string {
	t.Helper()
	_, rest, ok := strings.Cut(err.Error(), "imagectl operators approve ")
	id, _, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 {
		t.Fatalf("no request in: %v", err)
	}
	return id
}

// Two persons, told as a story.
func TestADangerousCallTakesTwoPersons(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	cfg := config(cp1(), w1())
	cfg.SecondPerson = []Danger{Wipe, Destroy}
	cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	r := start(t, cfg)
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	wipe := func(by apiconnect.OperatorServiceClient, name string) error {
		resp, err := by.ArmMachine(t.Context(), connect.NewRequest(&api.ArmMachineRequest{Selection: &api.Selection{Names: []string{name}}, Reinstall: true}))
		if err == nil && !resp.Msg.GetOutcomes()[0].GetOk() {
			t.Errorf("arming %s: %v", name, resp.Msg)
		}
		return err
	}
	agree := func(by apiconnect.OperatorServiceClient, id string) error {
		_, err := by.ApproveRequest(t.Context(), connect.NewRequest(&api.ApproveRequestRequest{Id: id}))
		return err
	}
	refusedWith(t, "alone", wipe(root, "w1"), "failed_precondition: to wipe and install again w1 takes a second person, and there is none: imagectl operators add")
	ada, eve, bob := r.human("ada"), r.human("eve"), r.human("bob")
	if err := ada.let(root, pki.RoleAdmin, false); err != nil {
		t.Fatalf("the second person is let in by one: %v", err)
	}
	if err := bob.let(root, pki.RoleReader, false); err != nil {
		t.Fatalf("who may do nothing needs no second person: %v", err)
	}
	err = eve.let(root, pki.RoleOperator, false)
	refusedWith(t, "a third", err, "failed_precondition: to let in eve with role operator takes a second person (ada): imagectl operators approve ")
	if err := agree(ada.calls(), requestID(t, err)); err != nil {
		t.Fatal(err)
	}
	// Another key is another request.
	refusedWith(t, "another key in its place", r.human("eve").let(root, pki.RoleOperator, false), "takes a second person (ada)")

	err = wipe(root, "w1")
	refusedWith(t, "wiping", err, "failed_precondition: to wipe and install again w1 takes a second person (ada): imagectl operators approve ")
	id := requestID(t, err)
	if again := requestID(t, wipe(root, "w1")); again != id {
		t.Errorf("asked again it is %s instead of %s", again, id)
	}
	refusedWith(t, "oneself", agree(root, id), "permission_denied: root asked for it: another person has to agree")
	refusedWith(t, "a reader", agree(bob.calls(), id), "permission_denied: operator bob with role reader may not call")
	refusedWith(t, "nobody on record", agree(r.operator(pki.RoleAdmin), "00000000"), "not_found: no request \"00000000\" waits")
	if err := ada.renew(); err != nil {
		t.Fatal(err)
	}
	if err := agree(ada.calls(), id); err != nil {
		t.Fatal(err)
	}
	list, err := ada.calls().ListRequests(t.Context(), connect.NewRequest(&api.ListRequestsRequest{}))
	if err != nil || !slices.ContainsFunc(list.Msg.GetRequests(), func(q *api.RequestView) bool {
		return q.GetId() == id && q.GetBy() == "root" && q.GetWhat() == "wipe and install again w1" && q.GetApprovedBy() == "ada"
	}) {
		t.Errorf("got %v, %v", list, err)
	}
	refusedWith(t, "another machine", wipe(root, "cp1"), "takes a second person")
	refusedWith(t, "another person with the first one's request", wipe(ada.calls(), "w1"), "takes a second person (root)")
	if err := wipe(root, "w1"); err != nil {
		t.Errorf("with two: %v", err)
	}
	refusedWith(t, "a second time", wipe(root, "w1"), "takes a second person (ada)")

	// Arming what was never installed wipes nothing that anybody knows; it takes one.
	if _, err := root.ArmMachine(t.Context(), connect.NewRequest(&api.ArmMachineRequest{Selection: &api.Selection{Names: []string{"cp1"}}})); err != nil {
		t.Error(err)
	}
	_, err = root.RetireMachine(t.Context(), connect.NewRequest(&api.RetireMachineRequest{Selection: &api.Selection{Names: []string{"w1"}}}))
	refusedWith(t, "retiring", err, "to retire w1 takes a second person (ada)")
	old := requestID(t, err)
	_, err = root.ReplaceMachine(t.Context(), connect.NewRequest(&api.ReplaceMachineRequest{Machine: "w1"}))
	refusedWith(t, "replacing", err, "to give the name w1 to other hardware takes a second person (ada)")

	// An hour later nobody remembers.
	ahead.Store(int64(requestLife + time.Minute))
	refusedWith(t, "too late", agree(ada.calls(), old), "not_found: no request")
	if list, err := root.ListRequests(t.Context(), connect.NewRequest(&api.ListRequestsRequest{})); err != nil || len(list.Msg.GetRequests()) > 0 {
		t.Errorf("got %v, %v", list, err)
	}
	// A second person who was revoked is none. Who goes so that one is left needs the other one's word.
	err = expel(ada.calls(), "ada")
	refusedWith(t, "going", err, "failed_precondition: to keep out ada, which leaves 1 takes a second person (root): imagectl operators approve ")
	if err := agree(root, requestID(t, err)); err != nil {
		t.Fatal(err)
	}
	if err := expel(ada.calls(), "ada"); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, "alone again", wipe(root, "w1"), "takes a second person, and there is none")
	actions := r.actions(t)
	for _, want := range []string{"request-made", "request-approved", "request-used"} {
		if !slices.Contains(actions, want) {
			t.Errorf("the log has no %s: %v", want, actions)
		}
	}
}

// What a call puts at risk: any one of its dangers in the policy holds it back. What is asked for in
// one call is no less dangerous than in two.
func TestDangersOfCalls(t *testing.T) {
	t.Parallel()
	w1 := &api.Selection{Names: []string{"w1"}}
	for _, c := range []struct {
		call any
		want []Danger
		what string
	}{
		{&api.ArmMachineRequest{Selection: w1}, nil, ""},
		{&api.ArmMachineRequest{Selection: w1, Reinstall: true}, []Danger{Wipe}, "wipe and install again w1"},
		{&api.ActMachineRequest{Selection: w1, Action: api.ActMachineRequest_ACTION_REBOOT}, nil, ""},
		{&api.ActMachineRequest{Selection: &api.Selection{All: true}, Action: api.ActMachineRequest_ACTION_RESET}, []Danger{Wipe}, "reset, which wipes, all machines"},
		{&api.ActMachineRequest{Selection: w1, Action: api.ActMachineRequest_ACTION_RESET_KEEP}, []Danger{Wipe}, "have etcd's and Kubernetes' data wiped on w1"},
		{&api.ReplaceMachineRequest{Machine: "w1"}, []Danger{Destroy, Wipe}, "give the name w1 to other hardware"},
		{&api.ReplaceMachineRequest{Machine: "w1", Arm: true}, []Danger{Destroy, Wipe}, "give the name w1 to other hardware and arm it"},
		{&api.ReplaceMachineRequest{Machine: "w1", Netboot: true}, []Danger{Destroy, Wipe}, "give the name w1 to other hardware and arm it"},
		{&api.RetireMachineRequest{Selection: w1}, []Danger{Destroy}, "retire w1"},
		{&api.RestoreEtcdRequest{Machine: "cp1", Lost: []string{"cp2", "cp3"}}, []Danger{Destroy}, "have etcd go on with what cp1 has, without cp2, cp3"},
		{&api.RestoreEtcdRequest{Machine: "cp1", Cancel: true}, nil, ""},
		{&api.RotateAuthorityRequest{Ca: "etcd"}, []Danger{Destroy}, "replace the CA etcd"},
		{&api.AddOperatorRequest{Name: "eve", Role: "operator"}, []Danger{Admit}, "let in eve with role operator"},
		{&api.AddOperatorRequest{Name: "eve", Role: "reader"}, nil, ""},
		{&api.StatusRequest{}, nil, ""},
	} {
		if got, what := danger(c.call); !slices.Equal(got, c.want) || what != c.what {
			t.Errorf("%T %v: %v, %q; want %v, %q", c.call, c.call, got, what, c.want, c.what)
		}
	}
}

func expel(by apiconnect.OperatorServiceClient, names ...string) error {
	_, err := by.RevokeOperators(context.Background(), connect.NewRequest(&api.RevokeOperatorsRequest{Names: names}))
	return err
}

// One person cannot make the others go and let in a second one of his own, on none of the ways;
// whoever has the server's machine can.
func TestOnePersonDoesNotBecomeTwo(t *testing.T) {
	t.Parallel()
	cfg := config(w1())
	cfg.SecondPerson = []Danger{Wipe}
	r := start(t, cfg)
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	ada, eve, bob := r.human("ada"), r.human("eve"), r.human("bob")
	if err := ada.let(root, pki.RoleOperator, false); err != nil {
		t.Fatal(err)
	}
	if err := bob.let(root, pki.RoleReader, false); err != nil {
		t.Fatal(err)
	}
	certs := func(what string) error {
		_, err := root.RevokeCertificates(t.Context(), connect.NewRequest(&api.RevokeCertificatesRequest{Serials: []string{what}}))
		return err
	}
	const want = "failed_precondition: to keep out ada, which leaves 1 takes a second person (ada): imagectl operators approve "
	for what, err := range map[string]error{
		"revoking her":                    expel(root, "ada"),
		"revoking her and another":        expel(root, "bob", "ada"),
		"revoking all her certificates":   certs("operator/ada"),
		"revoking one of her key":         certs(pki.Serial(ada.cert.Leaf)),
		"giving her a role without a say": (&human{rig: r, name: "ada", key: r.human("ada").key}).let(root, pki.RoleReader, true),
	} {
		refusedWith(t, what, err, want)
	}
	if err := expel(root, "bob"); err != nil {
		t.Errorf("who can hold back nobody: %v", err)
	}
	if err := expel(ada.calls(), "ada"); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("an operator revokes: %v", err)
	}
	err = expel(root, "ada")
	if _, err := ada.calls().ApproveRequest(t.Context(), connect.NewRequest(&api.ApproveRequestRequest{Id: requestID(t, err)})); err != nil {
		t.Fatal(err)
	}
	if err := expel(root, "ada"); err != nil {
		t.Fatalf("she agrees: %v", err)
	}
	const alone = "takes a second person, and there is none: once there were two, whoever has the server's machine lets in the next one: imagectl serve --operator NAME"
	refusedWith(t, "alone", eve.let(root, pki.RoleAdmin, false), "failed_precondition: to let in eve with role admin "+alone)
	r.restart(cfg)
	refusedWith(t, "alone, after a restart", eve.let(root, pki.RoleAdmin, false), alone)
	_, err = root.ArmMachine(t.Context(), connect.NewRequest(&api.ArmMachineRequest{Selection: &api.Selection{Names: []string{"w1"}}, Reinstall: true}))
	refusedWith(t, "wiping", err, alone)

	if _, err := r.local("eve"); err == nil {
		t.Error("whoever starts the server comes in as the second person")
	}
	named := func(name string) error {
		_, _, _, err := r.LocalNamed(t.Context(), name)
		return err
	}
	for _, name := range []string{"eve", "dan"} {
		if err := named(name); err != nil {
			t.Errorf("%s, named by whoever has the server: %v", name, err)
		}
	}
	refusedWith(t, "a fourth", named("mallory"), "mallory is no operator of this cluster")
	refusedWith(t, "one who was revoked", named("ada"), "operator ada was revoked at ")
	if e := r.audited("operator-added"); len(e) != 5 || e[3].Detail != "eve with role admin, by starting the server with this name: some things take two persons" {
		t.Errorf("the log has %v", e)
	}
}

// What is remembered of two persons is not what is on record of them now.
func TestTwoPersonsAreRemembered(t *testing.T) {
	t.Parallel()
	cfg := config(w1())
	cfg.SecondPerson = []Danger{Wipe}
	r := start(t, cfg)
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	ada := r.human("ada")
	if err := ada.let(root, pki.RoleAdmin, false); err != nil {
		t.Fatal(err)
	}
	demoted := r.human("ada")
	demote := func() error { return demoted.let(root, pki.RoleReader, true) }
	request := &api.AddOperatorRequest{Name: "ada", Role: string(pki.RoleReader), CsrDer: csr(t, demoted.key), Replace: true}
	_, err = root.AddOperator(t.Context(), connect.NewRequest(request))
	refusedWith(t, "alone", demote(), "to keep out ada, which leaves 1 takes a second person (ada)")
	if _, err := ada.calls().ApproveRequest(t.Context(), connect.NewRequest(&api.ApproveRequestRequest{Id: requestID(t, err)})); err != nil {
		t.Fatal(err)
	}
	if _, err := root.AddOperator(t.Context(), connect.NewRequest(request)); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, "with nobody on record but a reader", r.human("eve").let(root, pki.RoleAdmin, false), "takes a second person, and there is none: once there were two")
}

// A machine whose name was given to other hardware is armed without a word, so that is guarded
// where wiping is.
func TestReplacingIsWiping(t *testing.T) {
	t.Parallel()
	for _, policy := range [][]Danger{{Wipe}, {Destroy}} {
		cfg := config(w1())
		cfg.SecondPerson = policy
		r := start(t, cfg)
		root, err := r.local("root")
		if err != nil {
			t.Fatal(err)
		}
		if err := r.human("ada").let(root, pki.RoleAdmin, false); err != nil {
			t.Fatal(err)
		}
		_, err = root.ReplaceMachine(t.Context(), connect.NewRequest(&api.ReplaceMachineRequest{Machine: "w1"}))
		refusedWith(t, string(policy[0]), err, "failed_precondition: to give the name w1 to other hardware takes a second person (ada)")
	}
}

func TestOnePersonIsEnoughUnlessThePolicySaysOtherwise(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ada", "eve"} {
		if err := r.human(name).let(root, pki.RoleAdmin, false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := root.RetireMachine(t.Context(), connect.NewRequest(&api.RetireMachineRequest{Selection: &api.Selection{Names: []string{"w1"}}})); err != nil {
		t.Error(err)
	}
}
