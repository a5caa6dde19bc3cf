// Package upload brings a built disk image to a platform and looks after what is
// there: found again by digest, promoted, rolled back, pruned, cleaned up. Each
// platform is a Target in a package of its own below this one; what they share is
// here: the vocabulary, the journal of what a broken upload may leave, and the
// operations that every platform does alike.
//
// It opens no socket, reads no clock and no environment.
package upload

import (
	"context"
	"os"
	"time"

	"github.com/imagectl/imagectl/images/store"
)

// Image is what is uploaded: one disk artefact of a build.
type Image struct {
	// Name is the family's: stable over versions, CLUSTER-ROLE.
	Name string
	// Version is FLATCAR-DIGEST8, for instance 4593.2.1-1a2b3c4d.
	Version string
	// Digest is the manifest's rawSha256: it names the disk's content in every
	// format, and is what makes an upload idempotent. 64 hexadecimal digits.
	Digest string
	Format store.Format
	// File is open for reading and belongs to the caller. What was checked against
	// the manifest is what is read here, even if a build replaces the path
	// meanwhile. Use ReadAt (io.NewSectionReader), for there are several readers.
	File *os.File
	// Size of the file and SHA256 of it, in hexadecimal.
	Size   int64
	SHA256 string
	// RawSize is the size of the disk in bytes.
	RawSize int64
	// Labels are the audit record besides the fields above (Audit has all): keys
	// in lower case with hyphens, short values.
	Labels map[string]string
	// Documents lie beside the image: manifest, sums, provenance, bill of materials.
	Documents []Document
}

// Document is a small file that describes an image.
type Document struct {
	Kind DocumentKind
	// Path of the file; its base is its name.
	Path string
}

// DocumentKind says what a document is.
type DocumentKind string

// The kinds of documents.
const (
	Manifest   DocumentKind = "manifest"
	Sums       DocumentKind = "sums"
	Provenance DocumentKind = "provenance" // SLSA in DSSE
	SBOM       DocumentKind = "sbom"       // SPDX in JSON, of this image
)

// The keys of Audit that targets look for.
const (
	LabelOurs    = "imagectl"
	LabelName    = "name"
	LabelVersion = "version"
	LabelDigest  = "digest"
	LabelFile    = "file-digest"
)

// Keys of Labels that say which build an image is of, and not what is on the disk: the
// commit of the imagectl that built it, when what it holds was released, and the digest
// of the manifest, which its provenance names.
const (
	LabelGit      = "git"
	LabelCreated  = "created"
	LabelManifest = "manifest"
)

// Audit is the record that goes onto every object at a platform, as far as it
// takes labels: Labels and who made it, of what.
func (i Image) Audit() map[string]string {
	all := map[string]string{
		LabelOurs: "1", LabelName: i.Name, LabelVersion: i.Version,
		LabelDigest: "sha256:" + i.Digest, LabelFile: "sha256:" + i.SHA256,
	}
	for k, v := range i.Labels {
		if _, fixed := all[k]; !fixed {
			all[k] = v
		}
	}
	return all
}

// Object is what a platform has of ours.
type Object struct {
	// ID is the platform's.
	ID string `json:"id"`
	// Name, Version and Digest are those of the Image, read from its labels.
	Name    string `json:"name"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
	// Current is what the family's stable name points to; Previous is what it
	// pointed to before, where the platform keeps that.
	Current  bool `json:"current"`
	Previous bool `json:"previous,omitempty"`
	// Broken is what an upload left that came to nothing: never to be used.
	Broken  bool      `json:"broken,omitempty"`
	Created time.Time `json:"created"`
	// State is the platform's own word.
	State string `json:"state"`
}

// Plan is what an upload would do, and all that a dry run does.
type Plan struct {
	// Found is the finished object with this digest; nil if there is none.
	Found *Object `json:"found,omitempty"`
	// Stale: what was found is current, and its template has other options than the
	// target has now. Whoever plans sets it (package function Stale).
	Stale bool `json:"stale,omitempty"`
	// Steps in words, in order; none when there is nothing to do.
	Steps []string `json:"steps"`
	// Bytes that will be sent, at most.
	Bytes int64 `json:"bytes"`
}

// Check is one thing that was compared.
type Check struct {
	Name   string `json:"name"`
	Result Result `json:"result"`
	// Detail says what was found or why it cannot be proven.
	Detail string `json:"detail,omitempty"`
}

// Result of a Check.
type Result string

// The results. Unprovable is what the platform gives no means to know.
const (
	Good       Result = "good"
	Bad        Result = "bad"
	Unprovable Result = "unprovable"
)

// Target is one platform. All methods but Upload's sending take little time; each
// returns soon after its context ends. Errors wrap the sentinels of this package
// and hold the platform's own text.
type Target interface {
	// Formats that it takes, best first.
	Formats() []store.Format
	// Preflight changes nothing: it asks who we are there, for space and limits,
	// and for what is there already.
	Preflight(ctx context.Context, img Image) (Plan, error)
	// Upload makes the object, or finds it: two calls, at once or one after the
	// other, give the same one. It goes on where an earlier call broke off, or
	// removes what that left. The stable name does not move.
	Upload(ctx context.Context, img Image, j Journal, ev Events) (Object, error)
	// List has what carries our labels and nothing else, of one family or, with an
	// empty name, of all, oldest first.
	List(ctx context.Context, name string) ([]Object, error)
	// Promote moves the family's stable name to an object; back, too. Doing it
	// again changes nothing.
	Promote(ctx context.Context, o Object) error
	// Delete removes an object; ErrInUse when something needs it. One that is gone
	// already is ErrNotFound.
	Delete(ctx context.Context, o Object) error
	// Clean removes what a broken upload left. What is gone already is no error,
	// and a finished object stays. It touches nothing but ours.
	Clean(ctx context.Context, left Leftover) error
	// Verify reads labels and the platform's own hash again.
	Verify(ctx context.Context, o Object, img Image) ([]Check, error)
}

// Templates is what a Target has besides whose stable name is a template that says what
// machines are like: CPUs, memory, network, firmware, their server. Promote writes all of
// that as the target has it now.
type Templates interface {
	// Stale tells whether the template that starts o says something else; false where
	// nothing starts it. It changes nothing. An error is, too, what Promote cannot change.
	Stale(ctx context.Context, o Object) (bool, error)
}

// Leftover is something at a platform that stays if an upload breaks off.
type Leftover struct {
	// Kind is the target's own word: image, multipart, volume.
	Kind string `json:"kind"`
	// Name is chosen before it is made; ID, the platform's, is known after.
	Name string `json:"name"`
	ID   string `json:"id,omitempty"`
	// Note is the target's own, for instance the digest that it has to have.
	Note string `json:"note,omitempty"`
}

// Journal remembers, durably, what an upload is about to leave at a platform.
type Journal interface {
	// Left is what this upload, or an earlier one of the same image that broke
	// off, wrote and has not forgotten, oldest first.
	Left() []Leftover
	// Write is called before each remote create, and again once the ID is known:
	// the same Kind and Name is the same thing. It is on the disk when this returns.
	Write(Leftover) error
	// Forget is called when the thing is finished or gone.
	Forget(Leftover) error
}

// Events is told what goes on. It returns at once and may be called from several
// goroutines.
type Events func(Event)

// Event is one piece of news.
type Event struct {
	// Phase is what is being done, in a few words: "sending",
	// "front-end reading, pass 2". A new phase begins when it changes.
	Phase string `json:"phase"`
	// Done and Total are bytes; Total is 0 when there is nothing to count.
	Done  int64 `json:"done,omitempty"`
	Total int64 `json:"total,omitempty"`
	// Note is a sentence that is to be seen whatever the progress, for instance
	// what was found from an earlier run.
	Note string `json:"note,omitempty"`
}
