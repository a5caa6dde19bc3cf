package hetzner

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/imagectl/imagectl/images/upload"
)

// leftServer is what a broken upload leaves: a server and a key, found by their mark.
const leftServer = "server"

func versionName(name, version string) string { return name + "_" + version }

// serverName is one that a project has once.
func serverName(img upload.Image) string { return "imagectl-" + img.Digest[:min(20, len(img.Digest))] }

// find returns the snapshot of a disk, the finished one if there are several; nil
// when there is none.
func (t *Target) find(ctx context.Context, img upload.Image) (*snapshot, error) {
	all, err := t.snapshots(ctx, img.Name)
	if err != nil {
		return nil, err
	}
	var hit *snapshot
	for _, s := range all {
		if s.label(upload.LabelDigest) == digestPrefix+img.Digest && (hit == nil || hit.Status != snapshotReady) {
			hit = &s
		}
	}
	return hit, nil
}

// Preflight implements upload.Target. Nothing tells what a project may still make.
func (t *Target) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	if _, err := labelsOf(img.Audit()); err != nil {
		return upload.Plan{}, err
	}
	found, err := t.find(ctx, img)
	if err != nil {
		return upload.Plan{}, err
	}
	if found != nil && found.Status == snapshotReady {
		o, err := t.object(ctx, found.ID)
		return upload.Plan{Found: &o}, err
	}
	return upload.Plan{Bytes: img.Size, Steps: []string{
		fmt.Sprintf("make an SSH key and a server of type %s in %s, which costs money for the hour", t.conf.ServerType, t.conf.Location),
		"start its rescue system, write the disk through SSH, read it back and compare the digest",
		"make snapshot " + versionName(img.Name, img.Version) + ", and delete server and key",
	}}, nil
}

// Upload implements upload.Target.
func (t *Target) Upload(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	for _, l := range j.Left() {
		if err := t.Clean(ctx, l); err != nil {
			return upload.Object{}, err
		}
		if err := j.Forget(l); err != nil {
			return upload.Object{}, err
		}
	}
	for said := false; ; {
		found, err := t.find(ctx, img)
		if err != nil {
			return upload.Object{}, err
		}
		wait := ""
		switch {
		case found == nil:
			busy, err := t.busy(ctx, img)
			if err != nil {
				return upload.Object{}, err
			}
			if !busy {
				id, err := t.create(ctx, img, j, ev)
				if err == nil {
					return t.object(ctx, id)
				}
				if busy = taken(err); !busy && !errors.Is(err, errFaster) {
					return upload.Object{}, err
				}
			}
			if busy {
				wait = fmt.Sprintf("there is a server %s; if no upload has it, imagectl upload cleanup deletes it when it is a day old", serverName(img))
			}
		case found.Status == snapshotReady:
			return t.object(ctx, found.ID)
		case found.Status == "unavailable":
			ev(upload.Event{Phase: "removing what an earlier upload left", Note: fmt.Sprintf("snapshot %d is unavailable and is deleted", found.ID)})
			if err := t.drop(ctx, "images", found.ID); err != nil {
				return upload.Object{}, err
			}
		default:
			wait = fmt.Sprintf("snapshot %d is %s", found.ID, found.Status)
		}
		if wait == "" {
			continue
		}
		if !said {
			ev(upload.Event{Phase: "waiting for an upload that is under way", Note: wait})
			said = true
		}
		if err := t.conf.Wait(ctx, poll); err != nil {
			return upload.Object{}, fmt.Errorf("waiting for another upload of %s: %w", versionName(img.Name, img.Version), upload.CallError(ctx, err))
		}
	}
}

// busy: an upload of the image has a server.
func (t *Target) busy(ctx context.Context, img upload.Image) (bool, error) {
	hosts, err := t.servers(ctx, oursSelector)
	return slices.ContainsFunc(hosts, func(h server) bool { return h.Name == serverName(img) }), err
}

// errFaster: another upload of the image has ended since we looked.
var errFaster = errors.New("another upload was faster")

// create makes the snapshot and says its number. The server costs money, so it is
// deleted whatever happens, as far as that can be done.
func (t *Target) create(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (id int64, err error) {
	labels, err := labelsOf(img.Audit())
	if err != nil {
		return 0, err
	}
	left := upload.Leftover{Kind: leftServer, Note: t.conf.Mark()}
	left.Name = serverName(img) + "-" + left.Note
	labels[markLabel], labels[createdLabel] = left.Note, strconv.FormatInt(t.conf.Now().UnixNano(), 10)
	if err := j.Write(left); err != nil {
		return 0, err
	}
	defer func() {
		tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyLimit)
		defer cancel()
		ev(upload.Event{Phase: "deleting the server and the key"})
		failed := t.Clean(tidy, left)
		if failed == nil {
			failed = j.Forget(left)
		}
		err = errors.Join(err, failed)
	}()

	_, private, err := ed25519.GenerateKey(t.conf.Random)
	if err != nil {
		return 0, fmt.Errorf("making an SSH key: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return 0, fmt.Errorf("making an SSH key: %w", err)
	}
	host, err := t.rent(ctx, img, left, labels, signer, ev)
	if err != nil {
		return 0, err
	}
	// Nobody else can have a server of this name now.
	if found, err := t.find(ctx, img); err != nil || found != nil {
		return 0, cmp.Or(err, errFaster)
	}
	ev(upload.Event{Phase: "starting the rescue system"})
	if err := t.act(ctx, host.ID, "enable_rescue", map[string]any{"type": rescueSystem, "ssh_keys": []int64{host.key}}, nil); err != nil {
		return 0, err
	}
	if err := t.act(ctx, host.ID, "poweron", nil, nil); err != nil {
		return 0, err
	}
	if err := t.write(ctx, host.PublicNet.IPv4.IP, signer, img, ev); err != nil {
		return 0, err
	}
	ev(upload.Event{Phase: "Hetzner making the snapshot"})
	if err := t.act(ctx, host.ID, "poweroff", nil, nil); err != nil {
		return 0, err
	}
	var made struct{ Image snapshot }
	err = t.act(ctx, host.ID, "create_image", map[string]any{
		"type": "snapshot", "description": versionName(img.Name, img.Version), "labels": labels,
	}, &made)
	return made.Image.ID, err
}

// rented is a server, and the number of the SSH key that its rescue system shall
// let in.
type rented struct {
	server
	key int64
}

// rent makes a key and a server, which is not started.
func (t *Target) rent(ctx context.Context, img upload.Image, left upload.Leftover, labels map[string]string, key ssh.Signer, ev upload.Events) (rented, error) {
	ev(upload.Event{Phase: "making a server"})
	var k struct {
		Key labelled `json:"ssh_key"`
	}
	err := t.api.Do(ctx, http.MethodPost, "/ssh_keys", map[string]any{
		"name": left.Name, "public_key": strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey()))), "labels": labels,
	}, &k)
	if err != nil {
		return rented{}, fmt.Errorf("making the SSH key: %w", err)
	}
	var s struct {
		Server server
		Action action
		Next   []action `json:"next_actions"`
	}
	err = t.api.Do(ctx, http.MethodPost, "/servers", map[string]any{
		"name": serverName(img), "server_type": t.conf.ServerType, "image": bootImage, "location": t.conf.Location,
		// Without a key Hetzner would send a password by mail.
		"ssh_keys": []int64{k.Key.ID}, "start_after_create": false, "labels": labels,
	}, &s)
	if err != nil {
		return rented{}, fmt.Errorf("making the server: %w", err)
	}
	for _, a := range append(s.Next, s.Action) {
		if err := t.ended(ctx, "the creation of the server", a); err != nil {
			return rented{}, err
		}
	}
	return rented{s.Server, k.Key.ID}, nil
}

// Clean deletes the server and the key that an upload made. A snapshot is of a disk
// that was compared, and stays; one that is being made is waited for, since its
// server cannot be deleted before.
func (t *Target) Clean(ctx context.Context, left upload.Leftover) error {
	if left.Kind != leftServer || left.Note == "" {
		return fmt.Errorf("cleaning %s %q: Hetzner has no such thing", left.Kind, left.Name)
	}
	for {
		all, err := t.snapshots(ctx, "")
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(all, func(s snapshot) bool { return s.Labels[markLabel] == left.Note && s.Status == "creating" }) {
			break
		}
		if err := t.conf.Wait(ctx, poll); err != nil {
			return fmt.Errorf("waiting for the snapshot: %w", upload.CallError(ctx, err))
		}
	}
	return t.tidy(ctx, oursSelector+","+markLabel+"=="+left.Note)
}

// tidy deletes servers, and then keys.
func (t *Target) tidy(ctx context.Context, selector string) error {
	hosts, err := t.servers(ctx, selector)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if err := t.drop(ctx, "servers", h.ID); err != nil {
			return fmt.Errorf("deleting server %s: %w", h.Name, err)
		}
	}
	keys, err := t.keys(ctx, selector)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := t.drop(ctx, "ssh_keys", k.ID); err != nil {
			return fmt.Errorf("deleting SSH key %d: %w", k.ID, err)
		}
	}
	return nil
}
