// Package nodecopy fetches a backup of the server from the nodes that keep copies of it,
// without a server: on the day when the server is lost.
//
// Whose copy it is does not matter, and neither whether certificates have ended meanwhile,
// for the server renewed them: a copy is taken when the cluster's CA has signed it, and only
// a recovery key opens it. A node can at worst hide that it has a newer one, which is why
// several are asked.
package nodecopy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Source is where to ask, and as whom. All fields are needed.
type Source struct {
	Cluster string
	// CAs are those of the cluster that are trusted, Former those that may have signed a copy
	// once; there may be none.
	CAs, Former []*x509.Certificate
	// Certificate is an admin's or, while it is good, one with the role backup.
	Certificate tls.Certificate
	Now         func() time.Time

	// after is time.AfterFunc but in tests.
	after func(time.Duration, func()) *time.Timer
}

// answerTime is how long a node has to say what it keeps, and for each next piece of that.
const answerTime = 20 * time.Second

// Fetched is what came from a node.
type Fetched struct {
	// Path is of the backup in the directory.
	Path string
	File files.File
	// Node is the node's name.
	Node string
}

// Fetch brings the newest backup that any of the nodes keeps into a directory of this
// machine: of one that fails on the way, the next newest is taken. addresses are HOST:PORT.
// tell hears of nodes that gave nothing.
func (s Source) Fetch(ctx context.Context, addresses []string, dir string, tell func(error)) (Fetched, error) {
	var offers []*offer
	defer func() {
		for _, o := range offers {
			o.close()
		}
	}()
	var failed []error
	for _, address := range addresses {
		o, err := s.ask(ctx, address)
		if err != nil {
			failed = append(failed, fmt.Errorf("asking %s for a backup: %w", address, err))
			continue
		}
		offers = append(offers, o)
	}
	slices.SortStableFunc(offers, func(a, b *offer) int { return b.file.At.Compare(a.file.At) })
	for _, o := range offers {
		if _, err := files.Save(dir, o.file.Name, o.copyTo, o.signed.CheckContent); err != nil {
			failed = append(failed, fmt.Errorf("fetching %s from %s: %w", o.file.Name, o.node, err))
			continue
		}
		for _, err := range failed {
			tell(err)
		}
		return Fetched{Path: filepath.Join(dir, o.file.Name), File: o.file, Node: o.node}, nil
	}
	return Fetched{}, errors.Join(failed...)
}

// offer is a node that has begun to send a backup.
type offer struct {
	node string
	// anchors are the CAs to trust and what they have cross-signed.
	anchors []*x509.Certificate
	signed  files.Copy
	file    files.File
	stream  *connect.ServerStreamForClient[api.ReadBackupResponse]
	// watch ends the call when its timer does; why says what an error of the call means.
	watch func() *time.Timer
	why   func(error) error
	close func()
}

func (s Source) ask(ctx context.Context, address string) (_ *offer, err error) {
	o := &offer{}
	ctx, cancel := context.WithCancelCause(ctx)
	late := fmt.Errorf("nothing came for %v", answerTime)
	after := time.AfterFunc
	if s.after != nil {
		after = s.after
	}
	o.watch = func() *time.Timer { return after(answerTime, func() { cancel(late) }) }
	o.why = func(err error) error {
		if context.Cause(ctx) == late {
			return late
		}
		if ce := new(connect.Error); errors.As(err, &ce) {
			return errors.New(ce.Message()) // without its code
		}
		return err
	}
	tr := &http.Transport{ForceAttemptHTTP2: true, TLSHandshakeTimeout: answerTime, TLSClientConfig: &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &s.Certificate, nil },
		// verify does it all, but for the time.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			o.node, o.anchors, err = s.verify(cs)
			return err
		},
	}}
	o.close = func() {
		cancel(nil)
		if o.stream != nil {
			_ = o.stream.Close()
		}
		tr.CloseIdleConnections()
	}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	defer o.watch().Stop()
	o.stream, err = apiconnect.NewNodeServiceClient(&http.Client{Transport: tr}, "https://"+address, connect.WithReadMaxBytes(1<<20)).ReadBackup(ctx, connect.NewRequest(&api.ReadBackupRequest{}))
	if err != nil {
		return nil, o.why(err)
	}
	if !o.stream.Receive() {
		if err := o.stream.Err(); err != nil {
			return nil, o.why(err)
		}
		return nil, errors.New("it sent nothing")
	}
	c := o.stream.Msg().GetCopy()
	o.signed = files.Copy{Name: c.GetName(), Size: int64(c.GetSize()), SHA256: c.GetSha256(), Signature: c.GetSignature()}
	o.file, err = o.signed.Check(append(slices.Clone(o.anchors), s.Former...), s.Cluster)
	return o, err
}

// receive waits for the next piece.
func (o *offer) receive() bool {
	defer o.watch().Stop()
	return o.stream.Receive()
}

// verify accepts any node of the cluster, also one whose certificate has expired.
func (s Source) verify(cs tls.ConnectionState) (node string, anchors []*x509.Certificate, err error) {
	leaf, at := cs.PeerCertificates[0], s.Now()
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	if err := pki.Verify(s.CAs, cs.PeerCertificates, "", x509.ExtKeyUsageServerAuth, at); err != nil {
		return "", nil, fmt.Errorf("verifying the node: %w", err)
	}
	who, err := pki.IdentityOf(leaf, s.Cluster)
	if err != nil {
		return "", nil, fmt.Errorf("verifying the node: %w", err)
	}
	if who.Kind != pki.KindNode {
		return "", nil, fmt.Errorf("verifying the node: it is %s, which is no node", who)
	}
	return who.Name, pki.Anchors(s.CAs, cs.PeerCertificates[1:], at), nil
}

func (o *offer) copyTo(w io.Writer) error {
	for left := o.signed.Size; o.receive(); {
		b := o.stream.Msg().GetChunk()
		if left -= int64(len(b)); left < 0 {
			return fmt.Errorf("more comes than its %d bytes", o.signed.Size)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	if err := o.stream.Err(); err != nil {
		return o.why(err)
	}
	return nil
}
