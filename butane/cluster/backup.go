package cluster

import (
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
)

// Defaults of backup: a week of backups every six hours.
const (
	backupEvery = 6 * time.Hour
	backupKeep  = 28
	// nodesMost is files.MaxCopies of bootstrap/backup, which this package does not import.
	nodesMost = 8
	// A week of snapshots of etcd, too.
	etcdEvery = 6 * time.Hour
	etcdKeep  = 28
)

func (c *checker) backup(raw rawBackup, uploads []Upload) Backup {
	if raw.place.Path == "" {
		return Backup{}
	}
	b := Backup{Target: raw.Target.V, Bucket: raw.Bucket.V, Every: raw.Every.or(backupEvery), Keep: raw.Keep.or(backupKeep), Nodes: raw.Nodes.V}
	for _, r := range raw.Recipients {
		if !r.Set {
			continue
		}
		const hint = "age-keygen -o recovery.key, and keep that file where the server is not; its second line names the public key"
		switch _, err := age.ParseX25519Recipient(r.V); {
		case strings.HasPrefix(r.V, "AGE-SECRET-KEY-"):
			c.add(r.Pos, r.Path, "age-keygen -y prints the public half; make another key, this one is not secret any more", "this is a secret key, which never belongs here")
		case err != nil:
			c.add(r.Pos, r.Path, hint, "%q is no public key of age: want age1…", r.V)
		default:
			b.Recipients = append(b.Recipients, r.V)
		}
	}
	if len(raw.Recipients) == 0 && !c.reported(raw.place.Path) {
		c.add(raw.place.Pos, raw.place.Path, "recipients: [age1…]", "names no recipient, so nobody could open a backup")
	}
	if raw.Target.Set && (!filepath.IsAbs(b.Target) || filepath.Clean(b.Target) != b.Target) {
		c.add(raw.Target.Pos, raw.Target.Path, "target: /mnt/backups/imagectl", "%q is not an absolute path of a directory on the server's machine", b.Target)
	}
	if raw.Bucket.Set && !raw.Target.Set {
		c.add(raw.Bucket.Pos, raw.Bucket.Path, "target: /var/backups/imagectl", "copies what is in backup.target, which names no directory")
	}
	i := slices.IndexFunc(uploads, func(u Upload) bool { return u.Name == b.Bucket })
	if raw.Bucket.Set && (i < 0 || uploads[i].Type != "s3") {
		c.add(raw.Bucket.Pos, raw.Bucket.Path, "", "upload has no entry %q of type s3", b.Bucket)
	}
	if raw.Every.Set && (b.Every < time.Minute || b.Every > 7*24*time.Hour) {
		c.add(raw.Every.Pos, raw.Every.Path, "every: 6h", "%s is not between one minute and a week", b.Every)
	}
	if raw.Keep.Set && (b.Keep < 2 || b.Keep > 10000) {
		c.add(raw.Keep.Pos, raw.Keep.Path, "keep: 28", "%d backups are not between 2 and 10000", b.Keep)
	}
	switch {
	case raw.Nodes.Set && (b.Nodes < 1 || b.Nodes > nodesMost):
		c.add(raw.Nodes.Pos, raw.Nodes.Path, "nodes: 2", "%d copies on each control plane are not between 1 and %d", b.Nodes, nodesMost)
	case raw.Nodes.Set && !raw.Target.Set:
		c.add(raw.Nodes.Pos, raw.Nodes.Path, "target: /var/backups/imagectl", "gives control planes what is in backup.target, which names no directory")
	}
	b.Etcd = c.saveEtcd(raw.Etcd, raw.Target.Set)
	return b
}

func (c *checker) saveEtcd(raw rawSaveEtcd, target bool) SaveEtcd {
	if raw.place.Path == "" {
		return SaveEtcd{}
	}
	e := SaveEtcd{Every: raw.Every.or(etcdEvery), Keep: raw.Keep.or(etcdKeep), KeepFor: raw.KeepFor.V}
	if !target {
		c.add(raw.place.Pos, raw.place.Path, "target: /var/backups/imagectl", "saves etcd's snapshots in backup.target, which names no directory")
	}
	if raw.Every.Set && (e.Every < time.Minute || e.Every > 7*24*time.Hour) {
		c.add(raw.Every.Pos, raw.Every.Path, "every: 6h", "%s is not between one minute and a week", e.Every)
	}
	if raw.Keep.Set && (e.Keep < 2 || e.Keep > 10000) {
		c.add(raw.Keep.Pos, raw.Keep.Path, "keep: 28", "%d snapshots are not between 2 and 10000", e.Keep)
	}
	if raw.KeepFor.Set && e.KeepFor < 2*e.Every {
		c.add(raw.KeepFor.Pos, raw.KeepFor.Path, "keepFor: 720h", "%s is shorter than twice the %s from one snapshot to the next", e.KeepFor, e.Every)
	}
	return e
}
