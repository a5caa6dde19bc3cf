package platform

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// maxDescription bounds what a platform says of a machine's network and name, in bytes, but
// for context.sh. 64 cards with their routes are a tenth of it.
const maxDescription = 256 << 10

// Addresses returns what the platform says of the machine's network cards and of its name:
// the first of OpenNebula's CONTEXT, a config drive, NoCloud and guestinfo that says
// anything. Where none does the error wraps fs.ErrNotExist. Any other error may come with
// cards: it says what is wrong with those that are not among them.
func Addresses(ctx context.Context, m Machine) (Network, error) {
	for _, read := range []func(context.Context, Machine) (Network, error){openNebula, configDrive, noCloud, guestinfo} {
		if n, err := read(ctx, m); !errors.Is(err, fs.ErrNotExist) {
			return n, err
		}
	}
	return Network{}, fmt.Errorf("no platform says anything of the network: %w", fs.ErrNotExist)
}

// description reads a file of a medium. The error wraps fs.ErrNotExist where there is none.
func description(ctx context.Context, m Machine, label, file string) ([]byte, error) {
	b, err := m.ReadMedium(ctx, label, file, maxDescription+1)
	if err == nil && len(b) > maxDescription {
		err = fmt.Errorf("it has more than %d bytes", maxDescription)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", label, file, err)
	}
	return b, nil
}

// present is a description's content, or nil where there is none.
func present(b []byte, err error) ([]byte, error) {
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && b == nil {
		b = []byte{}
	}
	return b, err
}
