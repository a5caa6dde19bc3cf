package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/bmc"
)

// bmcs are the plan's management controllers as the server reaches them.
type bmcs struct{ *bmc.Rack }

// Power implements serverapi.BMC.
func (b bmcs) Power(ctx context.Context, machine string, a api.PowerMachineRequest_Action) (string, error) {
	var err error
	switch a {
	case api.PowerMachineRequest_ACTION_ON:
		err = b.Switch(ctx, machine, bmc.On)
	case api.PowerMachineRequest_ACTION_OFF:
		err = b.Switch(ctx, machine, bmc.Off)
	case api.PowerMachineRequest_ACTION_CYCLE:
		err = b.Cycle(ctx, machine)
	case api.PowerMachineRequest_ACTION_RESET:
		err = b.Reset(ctx, machine)
	case api.PowerMachineRequest_ACTION_SHUTDOWN:
		err = b.Shutdown(ctx, machine)
	}
	if err != nil {
		return "", err
	}
	power, err := b.Rack.Power(ctx, machine)
	return string(power), err
}

// loadBMCs reads what the BMCs of a plan need, so that what is missing is said
// before anything is served. It returns nil when there are none. unseal decrypts
// what is encrypted to the state directory's identity; medium is the URL of the
// installer's ISO image, for those that boot it.
func (g *globals) loadBMCs(p plan.Plan, medium string, unseal func([]byte) ([]byte, error)) (serverapi.BMC, error) {
	members := map[string]bmc.Member{}
	for _, m := range p.Machines {
		if m.BMC == nil {
			continue
		}
		member, err := g.loadBMC(*m.BMC, medium, unseal)
		if err != nil {
			return nil, fmt.Errorf("reading the BMC of machine %s: %w", m.Name, err)
		}
		members[m.Name] = member
	}
	if len(members) == 0 {
		return nil, nil
	}
	return bmcs{bmc.NewRack(members, bmc.Sleep)}, nil
}

// bootISO is the value of bmc.boot for virtual media.
const bootISO = "iso"

func (g *globals) loadBMC(b cluster.BMC, medium string, unseal func([]byte) ([]byte, error)) (bmc.Member, error) {
	member := bmc.Member{
		Target: bmc.Target{Kind: bmc.Kind(b.Kind), Address: b.Address, Username: b.Username, System: b.System, BIOS: b.BIOS},
		Device: bmc.Device(b.Boot),
		Secret: func() (bmc.Password, error) { return g.secret(b.Password, unseal) },
	}
	if b.Boot == bootISO {
		member.Device, member.Media = bmc.CD, medium
	}
	password, err := member.Secret()
	if err != nil {
		return member, err
	}
	if member.Kind == bmc.IPMI {
		if len(password) > 20 {
			return member, fmt.Errorf("its password has %d characters, and IPMI takes at most 20", len(password))
		}
		return member, nil
	}
	trust := bmc.Trust{Anybody: b.Insecure != ""}
	switch {
	case b.Pin != "":
		digest, err := hex.DecodeString(b.Pin)
		if err != nil || copy(trust.Pin[:], digest) != len(trust.Pin) {
			return member, fmt.Errorf("%q is no digest", b.Pin)
		}
	case b.CA != "":
		if trust.CA, err = os.ReadFile(g.inDir(b.CA)); err != nil {
			return member, err
		}
	}
	member.TLS, err = trust.Config()
	return member, err
}

// secret reads a secret from where cluster.yaml says it is. A line's end after it is
// no part of it.
func (g *globals) secret(s cluster.Secret, unseal func([]byte) ([]byte, error)) (bmc.Password, error) {
	var b []byte
	var err error
	switch {
	case s.Env != "":
		v, ok := os.LookupEnv(s.Env)
		if !ok {
			return "", fmt.Errorf("the environment of imagectl serve has no %s", s.Env)
		}
		b = []byte(v)
	case s.Age != "":
		if b, err = os.ReadFile(g.inDir(s.Age)); err != nil {
			return "", err
		}
		if b, err = unseal(b); err != nil {
			return "", fmt.Errorf("%s: %w; encrypt it to the public key in the state directory's identity.age", s.Age, err)
		}
	default:
		if b, err = os.ReadFile(g.inDir(s.File)); err != nil {
			return "", err
		}
	}
	text := strings.TrimRight(string(b), "\r\n")
	if text == "" {
		return "", errors.New("its password is empty")
	}
	return bmc.Password(text), nil
}

// inDir is a path of cluster.yaml as this process finds it.
func (g *globals) inDir(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(g.dir(), path)
}
