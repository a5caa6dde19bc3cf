package bmc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/stmcginnis/gofish/schemas"
)

// Error is what a BMC did not do: which BMC, which call, what it answered and what
// to do about it.
type Error struct {
	// BMC is its kind and address.
	BMC string
	// Call is what it was asked, such as "PATCH /redfish/v1/Systems/1".
	Call string
	// Status is the HTTP status or IPMI completion code; zero when nothing was
	// answered.
	Status int
	// Answer is what it said, or why nothing was heard.
	Answer string
	// Hint is what to do; may be empty.
	Hint string
	// Err is the cause; nil when the answer is all there is.
	Err error
}

func (e *Error) Error() string {
	var b strings.Builder
	// Both have words of the BMC's.
	call, answer := shorten(e.Call), shorten(e.Answer)
	fmt.Fprintf(&b, "asking %s: %s: ", e.BMC, call)
	if e.Status != 0 {
		fmt.Fprintf(&b, "it answered %s", statusText(e.BMC, e.Status))
		if answer != "" {
			b.WriteString(": ")
		}
	}
	b.WriteString(answer)
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func statusText(bmc string, status int) string {
	if strings.HasPrefix(bmc, string(IPMI)+" ") {
		return fmt.Sprintf("completion code %#02x", status)
	}
	return fmt.Sprintf("%d %s", status, http.StatusText(status))
}

// answered says that the BMC refused, so that nothing was done. Without an answer
// it may have been.
func (e *Error) answered() bool { return e.Status != 0 }

// maxAnswer bounds what is shown of an answer: some BMCs send whole web pages.
const maxAnswer = 400

// explain makes the *Error of a failed Redfish call.
func explain(bmc, call string, err error) error {
	if err == nil {
		return nil
	}
	var done *Error
	if errors.As(err, &done) {
		return err
	}
	e := &Error{BMC: bmc, Call: call, Err: err}
	var answer *schemas.Error
	var pin *pinError
	var unverified *tls.CertificateVerificationError
	var op *net.OpError
	var ue *url.Error
	switch {
	case errors.As(err, &answer) && answer.HTTPReturnedStatusCode != 0:
		e.Status, e.Answer = answer.HTTPReturnedStatusCode, shorten(answerText(answer))
		e.Hint = statusHint(e.Status)
	case errors.As(err, &pin):
		e.Answer, e.Hint = pin.Error(), "compare it with what the BMC's own page shows; if that is it, write it as bmc.tls.pin"
	case errors.As(err, &unverified):
		e.Answer, e.Hint = "its certificate is not trusted: "+unverified.Err.Error(), "BMCs sign theirs themselves: give its digest as bmc.tls.pin, or its authority as bmc.tls.ca"
	case errors.Is(err, context.Canceled):
		e.Answer = "given up before it answered"
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ue) && ue.Timeout():
		e.Answer, e.Hint = "no answer in time", "some BMCs hang until they are reset; look at its own page"
	case errors.As(err, &op) && op.Op == "dial":
		e.Answer, e.Hint = op.Err.Error(), "is the address right, and is the BMC's network reachable from here?"
	default:
		if errors.As(err, &ue) {
			err = ue.Err // its URL is in the call
		}
		e.Answer = shorten(err.Error())
	}
	return e
}

// answerText is what a Redfish service said: its extended messages, which are more
// precise than the sum of them.
func answerText(e *schemas.Error) string {
	var all []string
	for _, i := range e.ExtendedInfos {
		text := i.Message
		if i.MessageID != "" {
			text = strings.TrimSpace(text + " (" + i.MessageID + ")")
		}
		if text != "" {
			all = append(all, text)
		}
	}
	if len(all) == 0 && (e.Message != "" || e.Code != "") {
		text := e.Message
		if e.Code != "" {
			text = strings.TrimSpace(text + " (" + e.Code + ")")
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

// statusHint is for answers that mean the same everywhere.
func statusHint(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "are bmc.username and bmc.password right? Some BMCs lock an account after a few wrong tries"
	case http.StatusForbidden:
		return "the account needs the privileges of an operator at the BMC"
	default:
		return ""
	}
}

// shorten makes an answer one line that is not too long.
func shorten(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
	if len(s) > maxAnswer {
		s = strings.ToValidUTF8(s[:maxAnswer], "") + "…"
	}
	return s
}
