package pkcs11

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// Scheme is how URIs of keys in tokens begin.
const Scheme = "pkcs11:"

// URI names a key in a token (RFC 7512).
type URI struct {
	// Module is the path of the token's PKCS #11 library; empty for OpenSC's own.
	Module string
	// Token is the token's label, Slot the number of its slot; with neither it is the
	// first token there is.
	Token, Slot string
	// ID is the key's (CKA_ID), never empty.
	ID string
}

// ignored are attributes of RFC 7512 that say more about a key than is needed to
// find it: whether it was the right one is seen from its signature.
func ignored() map[string]bool {
	names := map[string]bool{}
	for _, name := range strings.Fields("object type serial manufacturer model slot-manufacturer slot-description library-manufacturer library-description library-version") {
		names[name] = true
	}
	return names
}

// ParseURI reads a URI such as p11tool prints. It needs the attribute id, since
// pkcs11-tool finds keys to sign with by nothing else, and holds no PIN.
func ParseURI(s string) (URI, error) {
	var u URI
	rest, ok := strings.CutPrefix(s, Scheme)
	if !ok {
		return u, fmt.Errorf("it does not begin with %s", Scheme)
	}
	path, query, _ := strings.Cut(rest, "?")
	seen := map[string]bool{}
	for _, part := range []struct{ text, separator string }{{path, ";"}, {query, "&"}} {
		if part.text == "" {
			continue
		}
		for _, attribute := range strings.Split(part.text, part.separator) {
			name, value, _ := strings.Cut(attribute, "=")
			value, err := url.PathUnescape(value)
			switch {
			case err != nil || name == "" || value == "":
				return u, fmt.Errorf("%q is not NAME=VALUE with %%XX for other than plain characters", attribute)
			case seen[name]:
				return u, fmt.Errorf("it has %s twice", name)
			}
			seen[name] = true
			if err := u.set(name, value); err != nil {
				return u, err
			}
		}
	}
	if u.ID == "" {
		return u, errors.New("it has no id, by which the key is found: pkcs11-tool --login --list-objects shows ids, and id=%0A%0B is that of the ID 0a0b")
	}
	return u, nil
}

func (u *URI) set(name, value string) error {
	switch name {
	case "token":
		u.Token = value
	case "slot-id":
		if _, err := strconv.ParseUint(value, 10, 32); err != nil {
			return fmt.Errorf("slot-id %q is no number", value)
		}
		u.Slot = value
	case "id":
		u.ID = value
	case "module-path":
		u.Module = value
	case "module-name":
		return errors.New("module-name is not known; name the library's file: module-path=/usr/lib/softhsm/libsofthsm2.so")
	case "pin-value", "pin-source":
		return fmt.Errorf("%s does not belong in it: pin says where the PIN is", name)
	default:
		if !ignored()[name] {
			return fmt.Errorf("its attribute %q is not one of RFC 7512", name)
		}
	}
	return nil
}
