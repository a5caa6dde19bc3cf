package nodeapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// streamsMax log streams at a time.
	streamsMax = 8
	// linesMax is the most lines of the past that one call gets.
	linesMax = 10_000
	// lineMax bounds one line, in bytes; the rest of it is dropped.
	lineMax = 16 << 10
	// entryMax bounds one journal entry with all its fields, in bytes.
	entryMax = 1 << 20
)

// unitRE is what systemd allows in unit names (systemd.unit(5)); a leading dash
// would be an option of journalctl.
var unitRE = regexp.MustCompile(`^[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]{0,254}$`)

type service struct {
	node    Node
	streams chan struct{}
	backups chan struct{}
	gates   gates
}

func (s *service) Version(ctx context.Context, _ *connect.Request[api.VersionRequest]) (*connect.Response[api.VersionResponse], error) {
	return connect.NewResponse(s.node.Version(ctx)), nil
}

func (s *service) Health(ctx context.Context, _ *connect.Request[api.HealthRequest]) (*connect.Response[api.HealthResponse], error) {
	return connect.NewResponse(s.node.Health(ctx)), nil
}

func (s *service) AuditHeads(context.Context, *connect.Request[api.AuditHeadsRequest]) (*connect.Response[api.AuditHeadsResponse], error) {
	return connect.NewResponse(s.node.AuditHeads()), nil
}

func (s *service) Logs(ctx context.Context, req *connect.Request[api.LogsRequest], out *connect.ServerStream[api.LogsResponse]) error {
	q, err := query(req.Msg)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d log streams are open already; end one of them", streamsMax))
	}
	err = s.node.Journal(ctx, q, func(r io.Reader) error { return forward(r, out.Send) })
	if cause := context.Cause(ctx); errors.Is(cause, errExpired) || errors.Is(cause, errRevoked) {
		return connect.NewError(connect.CodeUnauthenticated, cause)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func query(m *api.LogsRequest) (Query, error) {
	q := Query{Unit: m.GetUnit(), Follow: m.GetFollow(), Lines: int(min(m.GetLines(), linesMax))}
	if q.Lines == 0 {
		q.Lines = 100
	}
	if q.Unit != "" && !unitRE.MatchString(q.Unit) {
		return Query{}, fmt.Errorf("%q is no unit name", q.Unit)
	}
	if m.GetSince() != nil {
		if err := m.GetSince().CheckValid(); err != nil {
			return Query{}, err
		}
		q.Since = m.GetSince().AsTime()
	}
	return q, nil
}

// forward sends journalctl's JSON entries on. One that cannot be read is left
// out: a program may log any bytes.
func forward(r io.Reader, send func(*api.LogsResponse) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 64<<10), entryMax)
	for s.Scan() {
		if m, ok := entry(s.Bytes()); ok {
			if err := send(m); err != nil {
				return err
			}
		}
	}
	if err := s.Err(); err != nil && !errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("reading the journal: %w", err)
	} else if err != nil {
		return fmt.Errorf("reading the journal: an entry has more than %d bytes", entryMax)
	}
	return nil
}

// entry reads one line of "journalctl --output=json". MESSAGE is a string, or an
// array of bytes if it is no UTF-8 (systemd.io/JOURNAL_EXPORT_FORMATS).
func entry(b []byte) (*api.LogsResponse, bool) {
	var e struct {
		At      string          `json:"__REALTIME_TIMESTAMP"`
		Unit    string          `json:"_SYSTEMD_UNIT"`
		Message json.RawMessage `json:"MESSAGE"`
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, false
	}
	micros, err := strconv.ParseInt(e.At, 10, 64)
	if err != nil {
		return nil, false
	}
	var line string
	if err := json.Unmarshal(e.Message, &line); err != nil {
		var raw []uint8
		var numbers []int
		if err := json.Unmarshal(e.Message, &numbers); err != nil {
			return nil, false
		}
		for _, n := range numbers {
			raw = append(raw, uint8(n))
		}
		line = string([]rune(string(raw)))
	}
	if len(line) > lineMax {
		line = string([]rune(line[:lineMax]))
	}
	return &api.LogsResponse{At: timestamppb.New(time.UnixMicro(micros)), Unit: e.Unit, Line: line}, true
}
