package inspect

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// podLogs is where kubelet has containerd write: NAMESPACE_POD_UID/CONTAINER/N.log, in which N
// counts the container's starts, and N.log.TIME for what was rotated
// (pkg/kubelet/kuberuntime/helpers.go, BuildPodLogsDirectory and BuildContainerLogsDirectory).
const podLogs = "/var/log/pods"

// pods opens the directory; a symbolic link in it cannot lead out of it. A node without
// containers has none, which is fs.ErrNotExist.
func (s *System) pods() (*os.Root, error) {
	r, err := os.OpenRoot(s.path(podLogs))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("this node has had no containers: %w", fs.ErrNotExist)
	}
	return r, err
}

// Containers are those with a log, by namespace, pod and name.
func (s *System) Containers() (*api.ContainersResponse, error) {
	out := &api.ContainersResponse{}
	root, err := s.pods()
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading containers: %w", err)
	}
	defer root.Close()
	pods, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("reading containers: %w", err)
	}
	for _, p := range pods {
		f := strings.SplitN(p.Name(), "_", 3)
		if len(f) != 3 {
			continue
		}
		all, err := fs.ReadDir(root.FS(), p.Name())
		if err != nil {
			continue // deleted meanwhile
		}
		for _, c := range all {
			if len(out.Containers) == containersMax {
				out.Truncated = true
				return out, nil
			}
			logs, err := containerLogs(root, path.Join(p.Name(), c.Name()))
			if err != nil || len(logs) == 0 {
				continue
			}
			newest := logs[len(logs)-1]
			m := &api.NodeContainer{
				Namespace: clean(f[0]), Pod: clean(f[1]), PodUid: clean(f[2]), Container: clean(c.Name()),
				Restarts: uint32(newest.start), Written: timestamppb.New(newest.written),
			}
			for _, l := range logs {
				m.LogSize += uint64(l.size)
			}
			out.Containers = append(out.Containers, m)
		}
	}
	slices.SortFunc(out.Containers, func(a, b *api.NodeContainer) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetPod(), b.GetPod()), cmp.Compare(a.GetContainer(), b.GetContainer()), a.GetWritten().AsTime().Compare(b.GetWritten().AsTime()))
	})
	return out, nil
}

// logFile is one file of a container's log.
type logFile struct {
	name string
	// start counts the container's starts; rotated is the time in the name, empty for the
	// file that is written now.
	start   int
	rotated string
	size    int64
	written time.Time
}

// containerLogs are a container's, oldest first. Compressed ones are left out: kubelet leaves
// the newest of those that were rotated as it was.
func containerLogs(root *os.Root, dir string) ([]logFile, error) {
	all, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		return nil, err
	}
	var out []logFile
	for _, e := range all {
		number, rotated, ok := strings.Cut(e.Name(), ".log")
		n, err := strconv.Atoi(number)
		if !ok || err != nil || n < 0 || strings.HasSuffix(rotated, ".gz") || strings.HasSuffix(rotated, ".tmp") {
			continue
		}
		st, err := root.Stat(path.Join(dir, e.Name()))
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		out = append(out, logFile{name: path.Join(dir, e.Name()), start: n, rotated: strings.TrimPrefix(rotated, "."), size: st.Size(), written: st.ModTime()})
	}
	slices.SortFunc(out, func(a, b logFile) int {
		if a.start != b.start {
			return cmp.Compare(a.start, b.start)
		}
		// What is written now comes after all that was rotated.
		if (a.rotated == "") != (b.rotated == "") {
			return cmp.Compare(len(b.rotated), len(a.rotated))
		}
		return cmp.Compare(a.rotated, b.rotated)
	})
	return out, nil
}

// container finds the directory of a container's log: of several pods of one name, which were
// one after the other, the one that was written last.
func container(root *os.Root, req *api.ContainerLogsRequest) (string, error) {
	pods, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return "", err
	}
	prefix := req.GetNamespace() + "_" + req.GetPod() + "_"
	best, others := "", map[string]bool{}
	var newest time.Time
	for _, p := range pods {
		if !strings.HasPrefix(p.Name(), prefix) {
			continue
		}
		all, err := fs.ReadDir(root.FS(), p.Name())
		if err != nil {
			continue
		}
		for _, c := range all {
			others[c.Name()] = true
			if req.GetContainer() != "" && c.Name() != req.GetContainer() {
				continue
			}
			logs, err := containerLogs(root, path.Join(p.Name(), c.Name()))
			if err != nil || len(logs) == 0 {
				continue
			}
			if at := logs[len(logs)-1].written; best == "" || at.After(newest) {
				best, newest = path.Join(p.Name(), c.Name()), at
			}
		}
	}
	names := slices.Sorted(func(yield func(string) bool) {
		for n := range others {
			if !yield(clean(n)) {
				return
			}
		}
	})
	what := fmt.Sprintf("pod %s of namespace %s", req.GetPod(), req.GetNamespace())
	switch {
	case len(names) == 0:
		return "", fmt.Errorf("this node keeps no log of %s: %w", what, fs.ErrNotExist)
	case req.GetContainer() == "" && len(names) > 1:
		return "", fmt.Errorf("%s has the containers %s; name one: %w", what, strings.Join(names, ", "), fs.ErrNotExist)
	case best == "":
		return "", fmt.Errorf("this node keeps no log of %s's container %s; it has %s: %w", what, req.GetContainer(), strings.Join(names, ", "), fs.ErrNotExist)
	}
	return best, nil
}
