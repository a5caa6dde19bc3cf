package aws

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// contentSum is the header with the SHA-256 of a request's body, in hexadecimal.
const contentSum = "X-Amz-Content-Sha256"

// sign gives a request Amazon's signature, version 4, which covers all headers and
// the body. A body whose digest is in the headers already is not read again.
func (t *Target) sign(ctx context.Context, s service, r *http.Request, body []byte) error {
	digest := r.Header.Get(contentSum)
	if digest == "" {
		sum := sha256.Sum256(body)
		digest = hex.EncodeToString(sum[:])
		r.Header.Set(contentSum, digest)
	}
	if err := t.signer.SignHTTP(ctx, t.keys, r, digest, string(s), t.conf.Region, t.conf.Now()); err != nil {
		return fmt.Errorf("signing a request to %s: %w", s, err)
	}
	return nil
}

// refused is an answer of Amazon's that says no.
type refused struct {
	kind          error
	code, message string
}

func (r *refused) Error() string {
	return fmt.Sprintf("%v: %s: %s", r.kind, r.code, r.message)
}

func (r *refused) Unwrap() error { return r.kind }

// refusal reads the three forms that errors have: EC2's in XML, EBS' with the code
// in a header, Systems Manager's with the code in the document.
func refusal(a rest.Answer) error {
	if a.Status >= 200 && a.Status < 300 {
		return nil
	}
	code, message := words(a)
	if code == "" {
		return upload.StatusError(a.Status, message)
	}
	kind := kindOf(code)
	if code == "ValidationException" || code == "ConflictException" {
		kind = fmt.Errorf("%w: %w", upload.ErrServer, errNoSense)
	}
	if kind == nil {
		// The status says at least whose fault it was.
		return fmt.Errorf("%w: %s", upload.StatusError(a.Status, code), message)
	}
	return &refused{kind, code, message}
}

func words(a rest.Answer) (code, message string) {
	var doc struct {
		Errors []struct {
			Code    string `xml:"Code"`
			Message string `xml:"Message"`
		} `xml:"Errors>Error"`
	}
	if xml.Unmarshal(a.Body, &doc) == nil && len(doc.Errors) > 0 {
		return doc.Errors[0].Code, doc.Errors[0].Message
	}
	var object struct {
		Type    string `json:"__type"`
		Message string `json:"message"` // in either case
		Reason  string `json:"Reason"`
	}
	if json.Unmarshal(a.Body, &object) != nil {
		return "", strings.TrimSpace(string(a.Body[:min(len(a.Body), 300)]))
	}
	code = object.Type
	if h := a.Header.Get("X-Amzn-Errortype"); h != "" {
		code, _, _ = strings.Cut(h, ":")
	}
	if object.Reason != "" {
		object.Message += " (" + object.Reason + ")"
	}
	return code[strings.LastIndexByte(code, '#')+1:], object.Message
}

// codeOf is the code of an error of Amazon's, or empty.
func codeOf(a rest.Answer) string {
	code, _ := words(a)
	return code
}

func throttled(code string) bool {
	return slices.Contains([]string{"RequestLimitExceeded", "Throttling", "ThrottlingException", "RequestThrottled", "RequestThrottledException", "ConcurrentLimitExceededException", "SlowDown", "TooManyUpdates"}, code)
}

// again: Amazon did nothing, and asks to come back.
func again(a rest.Answer) bool {
	return a.Status == http.StatusTooManyRequests || a.Status >= 400 && throttled(codeOf(a))
}

// errNoSense: the request does not fit what is there.
var errNoSense = errors.New("it does not fit")

// kindOf knows the codes that a caller tells apart; nil for the others.
func kindOf(code string) error {
	is := func(all ...string) bool { return slices.Contains(all, code) }
	switch {
	case throttled(code):
		return upload.ErrServer
	case is("AuthFailure", "UnauthorizedOperation", "InvalidClientTokenId", "SignatureDoesNotMatch", "InvalidSignatureException", "UnrecognizedClientException",
		"IncompleteSignature", "MissingAuthenticationToken", "ExpiredToken", "ExpiredTokenException", "RequestExpired", "OptInRequired", "Blocked"),
		strings.HasPrefix(code, "AccessDenied"):
		return upload.ErrAuth
	case strings.Contains(code, "LimitExceeded"), strings.Contains(code, "QuotaExceeded"):
		return upload.ErrSpace
	case is("InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidSnapshot.NotFound", "ResourceNotFoundException", "ParameterNotFound"):
		return upload.ErrNotFound
	case is("InvalidSnapshot.InUse"):
		return upload.ErrInUse
	case is("InvalidAMIName.Duplicate"):
		return upload.ErrTaken
	}
	return nil
}
