package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/syslog"
)

func TestRunNamesTheTaskThatFailed(t *testing.T) {
	waits := Task{"patient", func(ctx context.Context) error { <-ctx.Done(); return nil }}
	for _, c := range []struct {
		name string
		task Task
		want string
	}{
		{"fails", Task{"dhcp", func(context.Context) error { return errors.New("no socket") }}, "running dhcp: no socket"},
		{"ends", Task{"tftp", func(context.Context) error { return nil }}, "running tftp: it ended by itself"},
	} {
		if err := Run(t.Context(), waits, c.task); err == nil || err.Error() != c.want {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, waits, waits); err != nil {
		t.Errorf("a clean stop returns %v", err)
	}
}

// A stop lets a running transfer finish, and then nobody is served any more.
func TestHTTPTaskStopsCleanly(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	entered, release := make(chan struct{}), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		io.WriteString(w, "whole")
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- httpTask("http", l, h, slog.New(slog.DiscardHandler), manner{stop: time.Hour}).Run(ctx)
	}()
	got := make(chan string, 1)
	go func() {
		r, err := http.Get("http://" + l.Addr().String())
		if err != nil {
			got <- err.Error()
			return
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		got <- string(b)
	}()
	select {
	case <-entered:
	case failed := <-got:
		t.Fatal(failed)
	}
	cancel()
	close(release)
	if b := <-got; b != "whole" {
		t.Errorf("the running transfer got %q", b)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	// Dialling would not tell: the port may be somebody else's by now.
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the port is still open: %v", err)
	}
}

func TestWhatMachinesSayIsTold(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 1)
	tasks, err := BootTasks(Config{Sockets: listen.Sockets{Syslog: conn}, Source: quiet{}, Heard: func(machine string, listed bool, l syslog.Line) {
		heard <- fmt.Sprint(machine, " ", listed, " ", l.App, ": ", l.Text)
	}})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(tasks, func(t Task) bool { return t.Name == "syslog" })
	if i < 0 {
		t.Fatalf("no task for it: %v", tasks)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- tasks[i].Run(ctx) }()
	client, err := net.Dial("udp4", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("<6>ipxe: net0: link up")); err != nil {
		t.Fatal(err)
	}
	if got := <-heard; got != "127.0.0.1 true ipxe: net0: link up" {
		t.Errorf("got %q", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func card(n int) net.HardwareAddr {
	return net.HardwareAddr{2, 0, 0, byte(n >> 16), byte(n >> 8), byte(n)}
}

func TestJournalKeepsTheLastEvents(t *testing.T) {
	var j Journal
	if got := j.Events(card(1)); len(got) != 0 {
		t.Errorf("an empty journal has %v", got)
	}
	for i := range eventsPerCard + 3 {
		j.Record(boot.Event{Machine: boot.Machine{MAC: card(1)}, Detail: fmt.Sprint(i)})
	}
	j.Record(boot.Event{Machine: boot.Machine{MAC: card(2)}, Detail: "other"})
	j.Record(boot.Event{Detail: "nobody"})
	got := j.Events(card(1))
	if len(got) != eventsPerCard || got[0].Detail != "3" || got[eventsPerCard-1].Detail != fmt.Sprint(eventsPerCard+2) {
		t.Errorf("got %d events from %s to %s", len(got), got[0].Detail, got[len(got)-1].Detail)
	}
	if got := j.Tail(card(1), 2); len(got) != 2 || got[0].Detail != fmt.Sprint(eventsPerCard+1) || got[1].Detail != fmt.Sprint(eventsPerCard+2) {
		t.Errorf("the last two are %v", got)
	}
	if got := j.Events(card(2)); len(got) != 1 || got[0].Detail != "other" {
		t.Errorf("the other card has %v", got)
	}
}

func TestJournalIsBounded(t *testing.T) {
	var j Journal
	for i := range 5 * maxCards {
		j.Record(boot.Event{Machine: boot.Machine{MAC: card(i)}})
		j.Record(boot.Event{Machine: boot.Machine{MAC: card(1 << 20)}, Detail: "boots again and again"})
	}
	if len(j.others.cards) > maxCards {
		t.Errorf("%d cards, limit %d", len(j.others.cards), maxCards)
	}
	if got := j.Events(card(1 << 20)); len(got) != eventsPerCard || !strings.Contains(got[0].Detail, "again") {
		t.Errorf("the busy card has %d events", len(got))
	}
}

// Invented cards do not wipe out what was seen of the machines of cluster.yaml, neither
// those that name nobody nor those that show a machine's UUID.
func TestInventedCardsDoNotWipeOutTheListedOnes(t *testing.T) {
	t.Parallel()
	var j Journal
	own := card(1 << 20)
	j.Pin([]net.HardwareAddr{own})
	j.Record(boot.Event{Machine: boot.Machine{MAC: card(1<<20 + 1)}, Detail: "whose it is was learned later"})
	j.Record(boot.Event{Machine: boot.Machine{MAC: card(1<<20 + 1)}, Name: "w1", Detail: "learned"})
	j.Record(boot.Event{Machine: boot.Machine{MAC: own}, Name: "cp1", Detail: "evidence"})
	j.Record(boot.Event{Machine: boot.Machine{MAC: own}, Detail: "a contradiction"})
	for i := range 3 * maxCards {
		j.Record(boot.Event{Machine: boot.Machine{MAC: card(i)}})
	}
	for i := range 3 * maxCards {
		j.Record(boot.Event{Machine: boot.Machine{MAC: card(1<<21 + i)}, Name: "cp1"})
	}
	details := func(mac net.HardwareAddr) (out []string) {
		for _, e := range j.Events(mac) {
			out = append(out, e.Detail)
		}
		return out
	}
	if got := details(own); !slices.Equal(got, []string{"evidence", "a contradiction"}) {
		t.Errorf("of cp1's own card there is %q", got)
	}
	if got := details(card(1<<20 + 1)); !slices.Equal(got, []string{"whose it is was learned later", "learned"}) {
		t.Errorf("of w1's learned card there is %q", got)
	}
	if len(j.listed.cards) != cardsPerName+1 || len(j.named["cp1"]) != cardsPerName || len(j.others.cards) > maxCards {
		t.Errorf("%d listed cards, %d of cp1, %d others", len(j.listed.cards), len(j.named["cp1"]), len(j.others.cards))
	}
	for i := range 2 * maxListed {
		j.Record(boot.Event{Machine: boot.Machine{MAC: card(1<<22 + i)}, Name: fmt.Sprint("m", i)})
	}
	if len(j.listed.cards) > maxListed || len(j.named) != len(j.listed.cards) {
		t.Errorf("of a cluster that is too big there are %d cards with %d names", len(j.listed.cards), len(j.named))
	}
}
