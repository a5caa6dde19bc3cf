package serverapi

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
)

// wire is how a call and its answer are written: Connect's protocol
// (connectrpc.com/docs/protocol), gRPC's and gRPC-Web's, which are what nodes understand.
type wire struct {
	// enveloped messages have five bytes before them: flags, and the length in big endian. Else
	// there is one message, and it is the body.
	enveloped bool
	// endFlag marks the envelope that has how a stream of answers ended; 0 where that comes in
	// trailers.
	endFlag byte
	json    bool
	// compression is the header that names how messages are compressed.
	compression string
}

// wireOf reads a content type.
func wireOf(contentType string) (wire, error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return wire{}, fmt.Errorf("reading the content type %.64q: %w", contentType, err)
	}
	switch media {
	case "application/proto", "application/json":
		return wire{compression: "Content-Encoding", json: media == "application/json"}, nil
	case "application/connect+proto", "application/connect+json":
		return wire{enveloped: true, endFlag: 0x02, compression: "Connect-Content-Encoding", json: strings.HasSuffix(media, "json")}, nil
	case "application/grpc", "application/grpc+proto", "application/grpc+json":
		return wire{enveloped: true, compression: "Grpc-Encoding", json: strings.HasSuffix(media, "json")}, nil
	case "application/grpc-web", "application/grpc-web+proto", "application/grpc-web+json":
		return wire{enveloped: true, endFlag: 0x80, compression: "Grpc-Encoding", json: strings.HasSuffix(media, "json")}, nil
	}
	return wire{}, fmt.Errorf("the content type %.64q is none that nodes understand", contentType)
}

// asked is what a person wants of a node, for the log.
type asked struct {
	// arguments is audit.Entry's; what is the call's name with what it asks for.
	arguments, what string
}

// readAsked reads the message that a call to a node begins with, and gives it back to be read
// again. What cannot be read is not passed on: the log could not say what it was.
func readAsked(r *http.Request) (asked, error) {
	a, err := func() (asked, error) {
		w, err := wireOf(r.Header.Get("Content-Type"))
		if err != nil {
			return asked{}, err
		}
		raw, message, err := w.first(r.Body, r.Header.Get(w.compression))
		if err != nil {
			return asked{}, err
		}
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(raw), r.Body), r.Body}
		m, err := requestOf(r.URL.Path)
		if err != nil {
			return asked{}, err
		}
		if w.json {
			// As connect-go reads it.
			err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(message, m)
		} else {
			err = proto.Unmarshal(message, m)
		}
		if err != nil {
			return asked{}, err
		}
		a := asked{what: path.Base(r.URL.Path)}
		if said := nodeapi.Words(m); said != "" {
			a.what += " " + said
		}
		a.arguments, err = digestOfCall(r.URL.Path, m)
		return a, err
	}()
	if err != nil {
		return a, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("reading what is asked of the node: %w", err))
	}
	return a, nil
}

// first reads the first message; raw is what it read, message what that says.
func (w wire) first(body io.Reader, compression string) (raw, message []byte, err error) {
	compressed := compression != "" && compression != "identity"
	if w.enveloped {
		head := make([]byte, 5)
		if _, err := io.ReadFull(body, head); err != nil {
			return nil, nil, fmt.Errorf("its length: %w", err)
		}
		n := binary.BigEndian.Uint32(head[1:])
		if n > nodeapi.MessageMax {
			return nil, nil, fmt.Errorf("%d bytes exceed %d", n, nodeapi.MessageMax)
		}
		raw = append(head, make([]byte, n)...)
		if _, err := io.ReadFull(body, raw[5:]); err != nil {
			return nil, nil, err
		}
		message, compressed = raw[5:], head[0]&1 != 0
	} else {
		if raw, err = io.ReadAll(io.LimitReader(body, nodeapi.MessageMax+1)); err != nil {
			return nil, nil, err
		}
		message = raw
	}
	if compressed {
		message, err = unpacked(message, compression)
	}
	if err == nil && len(message) > nodeapi.MessageMax {
		err = fmt.Errorf("more than %d bytes", nodeapi.MessageMax)
	}
	return raw, message, err
}

// unpacked is what a compressed message says, and a byte more than nodes take of one that is
// too long.
func unpacked(b []byte, compression string) ([]byte, error) {
	if compression != "gzip" {
		return nil, fmt.Errorf("it is compressed by %.16q, and nodes know gzip", compression)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, nodeapi.MessageMax+1))
}

// requestOf is an empty message of the kind that a call of nodes begins with.
func requestOf(procedure string) (proto.Message, error) {
	service := api.File_imagectl_v1_node_proto.Services().ByName("NodeService")
	method := service.Methods().ByName(protoreflect.Name(path.Base(procedure)))
	if method == nil {
		return nil, errors.New("nodes have no such call")
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
	if err != nil {
		return nil, err
	}
	return kind.New().Interface(), nil
}
