package serverapi

import (
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/enrol"
)

// What a stranger says about itself becomes a name that fits a key of the store, a label
// and a terminal, or none.
func FuzzFacts(f *testing.F) {
	for _, facts := range []*api.Facts{
		{Interfaces: []*api.NetworkInterface{{Mac: "52:54:00:00:00:01"}, {Mac: "52-54-00-00-00-02"}}, Uuid: "01020304-0506-0708-090A-0B0C0D0E0FFF", Serial: "x"},
		{Interfaces: []*api.NetworkInterface{{Mac: "../../52:54"}, nil}, Uuid: "/../x\n"}, {},
	} {
		b, err := proto.Marshal(&api.EnrolRequest{Facts: facts, Token: "w1.x"})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	name := regexp.MustCompile(`^(unknown-[0-9a-f-]+)?$`)
	index := enrol.NewIndex([]enrol.Hardware{{Name: "w1", MACs: []string{"52:54:00:00:00:01"}, Serial: "x"}})
	f.Fuzz(func(t *testing.T, b []byte) {
		var req api.EnrolRequest
		if proto.Unmarshal(b, &req) != nil {
			return
		}
		hw := hardware(req.GetFacts())
		if got := enrol.UnknownName(hw); !name.MatchString(got) {
			t.Errorf("%q is called %q", b, got)
		}
		if listed, refusal := index.Match(hw); listed != "" && (listed != "w1" || refusal != nil) {
			t.Errorf("%q is taken for %s, %v", b, listed, refusal)
		}
	})
}

// However much a machine reports of itself, its sentences stay short and readable.
func FuzzReport(f *testing.F) {
	f.Add("its disk is full", "etcd", "waits")
	f.Add(strings.Repeat("é", 3000), "\xff", strings.Repeat("x", 1025))
	f.Fuzz(func(t *testing.T, failure, step, detail string) {
		r := &api.SyncRequest{BootId: failure, Failure: failure, Steps: []*api.StepStatus{{Name: step, Detail: detail, State: api.StepStatus_STATE_RUNNING}}}
		bound(r)
		for _, s := range []string{r.GetBootId(), r.GetFailure(), r.GetSteps()[0].GetName(), r.GetSteps()[0].GetDetail()} {
			if len(s) > maxWords+len("…") {
				t.Errorf("%d bytes are left", len(s))
			}
		}
		if activityOf(r) == "" {
			t.Error("a step that runs is not told")
		}
	})
}
