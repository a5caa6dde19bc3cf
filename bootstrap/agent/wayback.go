package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
)

const (
	// linkChangePath holds the last change of links until it has shown that it works.
	linkChangePath = StateDir + "/network.change"
	// linksProve is how long changed links may leave a machine without its server and without
	// Kubernetes. Junos' commit confirmed waits as long when nobody says otherwise.
	linksProve = 10 * time.Minute
	// linksWatch is between two looks.
	linksWatch = 5 * time.Second
	uptimePath = "/proc/uptime"
)

// linkChange is a change of links that has not shown yet that it works, or has shown that it
// does not.
type linkChange struct {
	// Before are the files of links that worked; none means DHCP on every card.
	Before []keptFile `json:"before"`
	// Tried is the digest of those that take their place (linksDigest).
	Tried string `json:"tried"`
	// Made is the boot in which they were written; they hold in every later one.
	Made string `json:"made"`
	// Boot is the one in which they are on trial, and Since how long that system had been
	// running when the trial began.
	Boot  string        `json:"boot,omitempty"`
	Since time.Duration `json:"since,omitempty"`
	// Back: they did not work. Done: Before lie in their place since Boot, and hold in every
	// later one.
	Back bool `json:"back,omitempty"`
	Done bool `json:"done,omitempty"`
}

type keptFile struct {
	Path    string      `json:"path"`
	Mode    fs.FileMode `json:"mode"`
	Content []byte      `json:"content"`
}

// changeVerdict is what becomes of a change.
type changeVerdict int

const (
	// changeRest: nothing is to be done now.
	changeRest changeVerdict = iota
	// changeNote: the trial has begun; that has to be kept.
	changeNote
	// changeKeep: it works.
	changeKeep
	// changeBack: it does not, and the machine goes back; also when it was on its way there.
	changeBack
)

// next decides. up is how long the system has been running, by a clock that nobody sets.
// reached is asked only where it matters: whether the server, or another machine's API server,
// is reached now.
func (c linkChange) next(boot string, up, patience time.Duration, reached func() bool) (linkChange, changeVerdict) {
	switch {
	case c.Back && (!c.Done || boot == c.Boot):
		return c, changeBack
	case c.Back, boot == c.Made:
		return c, changeRest
	case reached():
		return c, changeKeep
	case boot != c.Boot:
		c.Boot, c.Since = boot, up
		return c, changeNote
	case up-c.Since < patience:
		return c, changeRest
	}
	c.Back = true
	return c, changeBack
}

// keepLinks watches changed links until they have shown that they work, and takes them back
// when they do not.
func (n *node) keepLinks(ctx context.Context) {
	for ctx.Err() == nil {
		acted, err := n.watchLinks(ctx)
		if err != nil {
			n.Log.Error("watching changed links", "err", err)
		}
		wait := linksWatch
		if acted {
			wait = time.Minute // it restarts
		}
		_ = pause(ctx, wait)
	}
}

// watchLinks looks once. It returns true when the machine restarts.
func (n *node) watchLinks(ctx context.Context) (restarts bool, err error) {
	c, err := n.linkChange()
	if c == nil || err != nil {
		return false, err
	}
	boot, err := n.Host.ReadFile(bootIDPath)
	if err != nil {
		return false, err
	}
	up, err := n.uptime()
	if err != nil {
		return false, err
	}
	// Without the lock: it takes as long as networks do.
	next, verdict := c.next(strings.TrimSpace(string(boot)), up, linksProve, func() bool { return n.connected(ctx) })
	if verdict == changeRest || ctx.Err() != nil {
		return false, nil
	}
	n.linking.Lock()
	defer n.linking.Unlock()
	if now, err := n.linkChange(); err != nil || now == nil || now.Tried != c.Tried || now.Made != c.Made {
		return false, err // another one has come meanwhile
	}
	switch verdict {
	case changeKeep:
		n.Log.Info("the changed links work: they are kept")
		return false, n.Host.Remove(linkChangePath)
	case changeNote:
		n.say(fmt.Sprintf("the links have changed: unless the server or the API is reached within %s, this machine goes back to those before", linksProve))
		return false, n.putLinkChange(next)
	}
	if !c.Back {
		why := fmt.Sprintf("neither the server nor another API server was reached within %s of changed links", linksProve)
		n.say(why + ": going back to those before, and restarting")
		if err := n.Record(audit.Entry{Action: "links-back", Detail: why, Actor: audit.Actor{Subject: "this node"}}); err != nil {
			n.Log.Error("recording that links go back", "err", err)
		}
		if err := n.putLinkChange(next); err != nil {
			return false, err
		}
	}
	if err := n.putLinksBack(next); err != nil {
		return false, err
	}
	next.Boot, next.Done = strings.TrimSpace(string(boot)), true
	if err := n.putLinkChange(next); err != nil {
		return false, err
	}
	return true, n.Host.Reboot(ctx)
}

// connected says whether this machine reaches somebody besides itself who matters.
func (n *node) connected(ctx context.Context) bool {
	if _, err := n.servers.reached(ctx); err == nil {
		return true
	}
	run := n.directive()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(run.GetKubernetes().GetCaPem())) {
		return false
	}
	for _, at := range run.GetKubernetes().GetApiServers() {
		if host, _, err := net.SplitHostPort(at); err != nil || host == run.GetAddress() {
			continue
		}
		short, cancel := context.WithTimeout(ctx, reachTime)
		// kubeadm puts this name into every API server's certificate.
		c, err := (&tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: "kubernetes", Time: n.Now}}).DialContext(short, "tcp", at)
		cancel()
		if err == nil {
			_ = c.Close()
			return true
		}
	}
	return false
}

// noteLinkChange keeps the links that are there now, before others take their place. While a
// change is on trial those before it are kept: they are the last ones that are known to work.
// The caller holds linking.
func (n *node) noteLinkChange(want []file, boot string) error {
	c, err := n.linkChange()
	if err != nil {
		return err
	}
	next := linkChange{Tried: linksDigest(want), Made: boot}
	if c != nil && !c.Back {
		next.Before = c.Before
		return n.putLinkChange(next)
	}
	list, err := n.Host.ReadFile(networkList)
	if err != nil && !notExist(err) {
		return err
	}
	for _, p := range strings.Fields(string(list)) {
		if !strings.HasPrefix(p, linksDir) || !networkPath(p) {
			continue
		}
		content, err := n.Host.ReadFile(p)
		if notExist(err) {
			continue
		} else if err != nil {
			return err
		}
		mode, err := n.Host.Mode(p)
		if err != nil {
			return err
		}
		next.Before = append(next.Before, keptFile{p, mode, content})
	}
	return n.putLinkChange(next)
}

// linksKept is what this machine shall have of the files that the server wants: where their
// links are those that it went back from, the ones before take their place.
func (n *node) linksKept(want []file) (kept []file, back bool, err error) {
	c, err := n.linkChange()
	if err != nil || c == nil || !c.Back || c.Tried != linksDigest(want) {
		return want, false, err
	}
	return c.instead(want), true, nil
}

// instead puts the links of before in the place of those among files.
func (c linkChange) instead(files []file) []file {
	var out []file
	for _, f := range files {
		if f.path != networkList && !strings.HasPrefix(f.path, linksDir) {
			out = append(out, f)
		}
	}
	for _, b := range c.Before {
		out = append(out, file{path: b.Path, content: b.Content, mode: uint32(b.Mode)})
	}
	if len(out) == 0 {
		return nil
	}
	var list strings.Builder
	for _, f := range out {
		list.WriteString(f.path + "\n")
	}
	return append(out, file{path: networkList, content: []byte(list.String()), mode: 0o644})
}

// putLinksBack writes the links of before. The caller holds linking.
func (n *node) putLinksBack(c linkChange) error {
	wrong, stale, err := n.networkDiffers(c.instead(networkFilesOf(n.directive())))
	if err != nil {
		return err
	}
	// What else differs is the step's, which tells whoever reads it.
	wrong = slices.DeleteFunc(wrong, func(f file) bool { return f.path != networkList && !strings.HasPrefix(f.path, linksDir) })
	stale = slices.DeleteFunc(stale, func(p string) bool { return !strings.HasPrefix(p, linksDir) })
	for _, f := range wrong {
		if f.path == networkList {
			continue // the step writes it; until then it names too much, which does no harm
		}
		if err := n.listAlso(f.path); err != nil {
			return err
		}
		if err := n.write(f); err != nil {
			return err
		}
	}
	for _, p := range stale {
		if err := n.Host.Remove(p); err != nil {
			return err
		}
	}
	return nil
}

// listAlso adds a file to the list before it is there.
func (n *node) listAlso(path string) error {
	list, err := n.Host.ReadFile(networkList)
	if err != nil && !notExist(err) {
		return err
	}
	if slices.Contains(strings.Fields(string(list)), path) {
		return nil
	}
	return n.write(file{networkList, append(bytes.TrimRight(list, "\n"), []byte("\n"+path+"\n")...), 0o644})
}

// networkFilesOf are the files of the network that a directive wants.
func networkFilesOf(run *api.Run) []file {
	var want []file
	for _, f := range run.GetNetwork().GetFiles() {
		want = append(want, file{path: f.GetPath(), content: f.GetContent(), mode: f.GetMode()})
	}
	return want
}

// linksDigest tells links from others, whatever else files say.
func linksDigest(files []file) string {
	var lines []string
	for _, f := range files {
		if strings.HasPrefix(f.path, linksDir) {
			lines = append(lines, fmt.Sprintf("%s %x\n", f.path, sha256.Sum256(f.content)))
		}
	}
	slices.Sort(lines)
	sum := sha256.Sum256([]byte(strings.Join(lines, "")))
	return hex.EncodeToString(sum[:])
}

// linkChange reads the last change; nil when there is none.
func (n *node) linkChange() (*linkChange, error) {
	b, err := n.Host.ReadFile(linkChangePath)
	if notExist(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	c := &linkChange{}
	if err := json.Unmarshal(b, c); err != nil {
		// Without it there is no way back, and also none that leads astray.
		n.Log.Error("forgetting a change of links, which cannot be read", "file", linkChangePath, "err", err)
		return nil, n.Host.Remove(linkChangePath)
	}
	return c, nil
}

func (n *node) putLinkChange(c linkChange) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return n.write(file{linkChangePath, b, 0o600})
}

// uptime is how long this system has been running (proc(5), uptime).
func (n *node) uptime() (time.Duration, error) {
	b, err := n.Host.ReadFile(uptimePath)
	if err != nil {
		return 0, err
	}
	word, _, _ := strings.Cut(string(b), " ")
	seconds, err := strconv.ParseFloat(strings.TrimSpace(word), 64)
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", uptimePath, err)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}
