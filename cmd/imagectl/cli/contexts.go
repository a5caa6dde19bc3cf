package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/butane/cluster"
)

// serverContexts is the context file: one context, or those of several clusters, of which
// none has the name of another.
type serverContexts []serverContext

// severalContexts is the file's form where there are several; one alone is the file.
type severalContexts struct {
	Clusters serverContexts `json:"clusters"`
}

// parseContexts reads either form.
func parseContexts(b []byte) (serverContexts, error) {
	var several severalContexts
	if err := json.Unmarshal(b, &several); err != nil {
		return nil, err
	}
	if several.Clusters == nil {
		var one serverContext
		if err := json.Unmarshal(b, &one); err != nil {
			return nil, err
		}
		return serverContexts{one}, nil
	}
	if len(several.Clusters) == 0 {
		return nil, errors.New("it holds no cluster")
	}
	names := several.Clusters.names()
	slices.Sort(names)
	for i, name := range names {
		if name == "" || i > 0 && name == names[i-1] {
			return nil, fmt.Errorf("it holds cluster %q more than once, or without a name", name)
		}
	}
	return several.Clusters, nil
}

// encode is the form that parseContexts reads.
func (all serverContexts) encode() ([]byte, error) {
	var file any = severalContexts{all}
	if len(all) == 1 {
		file = all[0]
	}
	b, err := json.MarshalIndent(file, "", "  ")
	return append(b, '\n'), err
}

func (all serverContexts) names() (out []string) {
	for _, c := range all {
		out = append(out, c.Cluster)
	}
	return out
}

// with puts a context in the place of the one of its cluster, or to the others.
func (all serverContexts) with(c serverContext) serverContexts {
	out := slices.Clone(all)
	i := slices.IndexFunc(out, func(o serverContext) bool { return o.Cluster == c.Cluster })
	if i < 0 {
		out = append(out, c)
	} else {
		out[i] = c
	}
	slices.SortFunc(out, func(a, b serverContext) int { return strings.Compare(a.Cluster, b.Cluster) })
	return out
}

// choose is the context that a verb is about: of the cluster that was asked for, else of the
// one that file, which is of cluster inFile, is of; that is empty where there is no file. A
// file of another cluster than the only context's is no reason to call that one.
func (all serverContexts) choose(asked, inFile, file string) (serverContext, error) {
	name, why := asked, "--cluster asks for"
	if name == "" {
		name, why = inFile, file+" is of"
	}
	if name == "" && len(all) == 1 {
		return all[0], nil
	}
	has := strings.Join(all.names(), ", ")
	if name == "" {
		return serverContext{}, usageError{fmt.Errorf("the context file has clusters %s: say which with --cluster NAME, or with -f and its cluster.yaml", has)}
	}
	for _, c := range all {
		if c.Cluster == name {
			return c, nil
		}
	}
	return serverContext{}, usageError{fmt.Errorf("%s cluster %s, and the context file has %s: imagectl operators accept adds another one, and so does its imagectl serve; or point IMAGECTL_CONFIG to another file", why, name, has)}
}

// readContext is the context of the cluster that a verb is about.
func (g *globals) readContext() (serverContext, error) {
	path, err := contextPath()
	if err != nil {
		return serverContext{}, err
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return serverContext{}, fmt.Errorf("there is no context file %s: imagectl serve writes it on the machine it runs on; copy it from there, or point IMAGECTL_CONFIG to it", path)
	}
	if err != nil {
		return serverContext{}, fmt.Errorf("reading context: %w", err)
	}
	all, err := parseContexts(b)
	if err != nil {
		return serverContext{}, fmt.Errorf("reading context %s: %w", path, err)
	}
	inFile := ""
	if g.cluster == "" {
		inFile = cluster.NameIn(os.ReadFile, g.file)
	}
	return all.choose(g.cluster, inFile, g.file)
}

// write puts the context into the file in one step, readable by its owner only. Those of
// other clusters stay.
func (c serverContext) write(path string) error {
	if err := c.writeBeside(path); err != nil {
		return fmt.Errorf("writing context %s: %w", path, err)
	}
	return nil
}

func (c serverContext) writeBeside(path string) error {
	unlock, err := lockContexts(path)
	if err != nil {
		return err
	}
	defer unlock()
	var all serverContexts
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(bytes.TrimSpace(b)) == 0:
	case err != nil:
		return err
	default:
		if all, err = parseContexts(b); err != nil {
			return fmt.Errorf("what is there is not a context file: %w; move it away", err)
		}
	}
	if b, err = all.with(c).encode(); err != nil {
		return err
	}
	return writePrivate(path, b)
}

// lockContexts keeps two programs that write contexts of different clusters from forgetting
// one of them. The file itself is replaced, so another one beside it is locked.
func lockContexts(path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
