package fstree

import (
	"errors"
	"fmt"
	"io"
	"path"
	"time"
)

// Node is an Entry with its place in the hierarchy, for writers that encode
// directories as lists of their children.
type Node struct {
	Entry
	// Name is the last element of the path; the root's is "".
	Name string
	// Parent of the root is the root itself, as "/.." is "/".
	Parent *Node
	// Children of a Dir, in byte order of their names.
	Children []*Node
}

// Root returns the tree as linked nodes. The nodes are a copy: later changes to
// the tree do not show in them.
func (t *Tree) Root() *Node {
	byPath := make(map[string]*Node, len(t.byPath))
	for _, e := range t.Entries() {
		n := &Node{Entry: e}
		byPath[e.Path] = n
		if e.Path == "." {
			n.Parent = n
			continue
		}
		n.Name = path.Base(e.Path)
		n.Parent = byPath[path.Dir(e.Path)]
		n.Parent.Children = append(n.Parent.Children, n)
	}
	return byPath["."]
}

// Walk calls f for n and everything below it, a directory before its children.
// It stops at the first error and returns it.
func (n *Node) Walk(f func(*Node) error) error {
	if err := f(n); err != nil {
		return err
	}
	for _, c := range n.Children {
		if err := c.Walk(f); err != nil {
			return err
		}
	}
	return nil
}

// Links is the link count that stat(2) reports: for a directory its name, its
// "." and one ".." for each subdirectory; otherwise 1.
func (n *Node) Links() uint32 {
	if n.Type != Dir {
		return 1
	}
	links := uint32(2)
	for _, c := range n.Children {
		if c.Type == Dir {
			links++
		}
	}
	return links
}

// Unix is the entry's modification time in seconds since 1970, or that of def
// when the entry has none, or 0 when def has none either.
func (e Entry) Unix(def time.Time) int64 {
	for _, t := range []time.Time{e.ModTime, def} {
		if !t.IsZero() {
			return t.Unix()
		}
	}
	return 0
}

// ReadBlocks calls f with the consecutive blocks of the content, each as long
// as buf but the last, which may be shorter. The block is buf itself: f must
// not keep it. It fails when the content is not exactly Size bytes long.
func ReadBlocks(c Content, buf []byte, f func(block []byte) error) error {
	r, err := c.Open()
	if err != nil {
		return err
	}
	defer r.Close() // only read from: closing cannot lose anything
	left := c.Size()
	for left > 0 {
		block := buf[:min(int64(len(buf)), left)]
		if n, err := io.ReadFull(r, block); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("content is %d bytes long, %d were announced: it changed while it was read",
					c.Size()-left+int64(n), c.Size())
			}
			return err
		}
		if err := f(block); err != nil {
			return err
		}
		left -= int64(len(block))
	}
	n, err := io.ReadFull(r, make([]byte, 1))
	if n != 0 {
		return fmt.Errorf("content is longer than the %d bytes announced: it changed while it was read", c.Size())
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
