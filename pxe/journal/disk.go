package journal

import (
	"io"
	"os"
)

// Disk is what a journal does to files; only a test has another one than the system's.
type Disk interface {
	ReadFile(path string) ([]byte, error)
	// Create makes a file of mode 0600, in place of any that is there.
	Create(path string) (File, error)
	Rename(from, to string) error
	SyncDir(dir string) error
}

// File is an open file.
type File interface {
	io.WriterAt
	io.Closer
	Sync() error
}

// systemDisk is the disk of this machine.
type systemDisk struct{}

func (systemDisk) ReadFile(path string) ([]byte, error) { return os.ReadFile(path) }

func (systemDisk) Create(path string) (File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
}

func (systemDisk) Rename(from, to string) error { return os.Rename(from, to) }

func (systemDisk) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
