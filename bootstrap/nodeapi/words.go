package nodeapi

import (
	"fmt"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// Words are what a call asks for, for audit logs: which file, which packets, whose log. They are
// empty where a call asks for nothing in particular. The message comes as the caller sent it, so
// nothing of it was checked. None of these is a secret; what a message gets that may be one is not
// to be named here.
func Words(message any) string {
	switch m := message.(type) {
	case *api.ReadFileRequest:
		return quoted(m.GetPath())
	case *api.CaptureRequest:
		if q, err := captureQuery(m); err == nil {
			return captureWords(q)
		}
		return "on " + quoted(m.GetLink())
	case *api.LogsRequest:
		return following("of "+either(quoted(m.GetUnit()), "everything"), m.GetFollow())
	case *api.DmesgRequest:
		return following("", m.GetFollow())
	case *api.ContainerLogsRequest:
		return following("of "+quoted(strings.TrimSuffix(m.GetNamespace()+"/"+m.GetPod()+"/"+m.GetContainer(), "/")), m.GetFollow())
	case *api.UnitsRequest:
		return quoted(m.GetUnit())
	case *api.BundleRequest:
		return "for " + quoted(strings.Join(m.GetRecipients(), ", "))
	case *api.PutEtcdSnapshotRequest:
		return "SHA-256 " + quoted(m.GetSha256())
	}
	return ""
}

// captureWords are a capture's bounds and filter.
func captureWords(q *api.CaptureRequest) string {
	out := fmt.Sprintf("on %s for %s, at most %d packets and %d bytes", q.GetLink(), time.Duration(q.GetSeconds())*time.Second, q.GetPackets(), q.GetBytes())
	if p := q.GetProtocol(); p != "" {
		out += ", protocol " + quoted(p)
	}
	if h := q.GetHost(); h != "" {
		out += ", host " + quoted(h)
	}
	if q.GetPort() > 0 {
		out += fmt.Sprintf(", port %d", q.GetPort())
	}
	return out
}

// quoted is text of a caller's: as it is where it says nothing but itself.
func quoted(s string) string {
	plain := !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || r == '"' })
	if s = cut(s, reasonMax); !plain {
		return fmt.Sprintf("%q", s)
	}
	return s
}

func either(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func following(s string, follow bool) string {
	if follow {
		return strings.TrimPrefix(s+", following", ", ")
	}
	return s
}
