package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// Numbers of the format; all are little endian and offsets count sectors.
const (
	sector       = 512
	grainSectors = GrainSize / sector
	// A grain table covers 512 grains (32 MiB); VMware's library knows no other.
	tableEntries = 512
	tableSectors = tableEntries * 4 / sector

	magic = 0x564d444b // "KDMV" on disk
	// ESXi refuses lower ones as "sparse VMDK version too old".
	version = 3
	// The line-ends test is there, grains are compressed and carry their place.
	flags = 1<<0 | 1<<16 | 1<<17
	// The directory's offset in the header when the footer has the real one.
	directoryAtEnd   = 1<<64 - 1
	compressDeflate  = 1
	descriptorOffset = 1
	descriptorLength = 20
	// Sectors before the first grain: those of a writer that aligns to grains.
	overhead = 128
)

// Markers of what is not a grain.
const (
	markEnd       = 0
	markTable     = 1
	markDirectory = 2
	markFooter    = 3
)

// header returns the sparse extent header, which is the footer, too.
func header(capacity int64, directory uint64) []byte {
	b := make([]byte, 0, sector)
	le := binary.LittleEndian
	b = le.AppendUint32(b, magic)
	b = le.AppendUint32(b, version)
	b = le.AppendUint32(b, flags)
	b = le.AppendUint64(b, uint64(capacity/sector))
	b = le.AppendUint64(b, grainSectors)
	b = le.AppendUint64(b, descriptorOffset)
	b = le.AppendUint64(b, descriptorLength)
	b = le.AppendUint32(b, tableEntries)
	b = le.AppendUint64(b, 0) // no redundant directory
	b = le.AppendUint64(b, directory)
	b = le.AppendUint64(b, overhead)
	b = append(b, 0) // shut down cleanly
	// Shows when the file went through a text-mode transfer.
	b = append(b, "\n \r\n"...)
	b = le.AppendUint16(b, compressDeflate)
	return b[:sector]
}

// descriptor is the text that describes the disk. The name in its extent line is
// constant, as in VMware's own streams: readers of an embedded descriptor do not
// follow it.
func descriptor(capacity int64, o Options) string {
	// The geometry of a SCSI disk of more than 1 GiB; only BIOS interrupts see it.
	const heads, sectors = 255, 63
	cylinders := min((capacity/sector+heads*sectors-1)/(heads*sectors), 65535)
	cid := binary.BigEndian.Uint32(o.ContentID[12:])
	if cid >= 0xfffffffe {
		// Both mean that there is no parent.
		cid -= 2
	}
	// virtualHWVersion is read by ESX 3 and older only; toolsVersion and
	// toolsInstallType say that the guest brings its own, without which vSphere
	// warns.
	return fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=%08x
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RDONLY %d SPARSE "stream.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "%d"
ddb.geometry.sectors = "%d"
ddb.longContentID = "%x%08x"
ddb.toolsInstallType = "4"
ddb.toolsVersion = "2147483647"
ddb.virtualHWVersion = "4"
`, cid, capacity/sector, cylinders, heads, sectors, o.ContentID[:12], cid)
}

// appendGrain appends compressed data with a header that lacks the grain's place,
// and fills the last sector.
func appendGrain(dst, data []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(data)))
	dst = append(dst, data...)
	if rest := len(dst) % sector; rest != 0 {
		dst = append(dst, make([]byte, sector-rest)...)
	}
	return dst
}

// stream writes grains in order, and each grain table behind its grains.
type stream struct {
	w        io.Writer
	options  Options
	capacity int64
	// at is the sector that is written next.
	at        uint64
	directory []uint32
	// table is that of the grains from directory entry index on.
	table [tableEntries]uint32
	index int64
	used  bool
}

func newStream(w io.Writer, size int64, o Options) *stream {
	capacity := Capacity(size)
	const covered = GrainSize * tableEntries
	return &stream{w: w, options: o, capacity: capacity, directory: make([]uint32, (capacity+covered-1)/covered)}
}

// write writes whole sectors.
func (s *stream) write(b []byte) error {
	s.at += uint64(len(b) / sector)
	_, err := s.w.Write(b)
	return err
}

func (s *stream) begin() error {
	text := descriptor(s.capacity, s.options)
	if len(text) > descriptorLength*sector {
		return fmt.Errorf("the descriptor has %d bytes, at most %d fit", len(text), descriptorLength*sector)
	}
	b := make([]byte, overhead*sector)
	copy(b, header(s.capacity, directoryAtEnd))
	copy(b[descriptorOffset*sector:], text)
	return s.write(b)
}

// grain writes what appendGrain made and notes its place.
func (s *stream) grain(number int64, b []byte) error {
	if i := number / tableEntries; i != s.index {
		if err := s.endTable(); err != nil {
			return err
		}
		s.index = i
	}
	at, err := s.here()
	if err != nil {
		return err
	}
	s.table[number%tableEntries], s.used = at, true
	binary.LittleEndian.PutUint64(b, uint64(number)*grainSectors)
	return s.write(b)
}

// here is the next sector, as tables hold it.
func (s *stream) here() (uint32, error) {
	if s.at > 1<<32-1 {
		return 0, fmt.Errorf("the compressed image exceeds 2 TiB, which this format cannot address")
	}
	return uint32(s.at), nil
}

// endTable writes the grain table, if it has an entry. A directory entry of 0
// says that all of its grains are zero.
func (s *stream) endTable() error {
	if !s.used {
		return nil
	}
	if err := s.mark(markTable, tableSectors); err != nil {
		return err
	}
	at, err := s.here()
	if err != nil {
		return err
	}
	s.directory[s.index] = at
	if err := s.write(entries(s.table[:])); err != nil {
		return err
	}
	clear(s.table[:])
	s.used = false
	return nil
}

// mark announces a number of sectors that are not a grain.
func (s *stream) mark(kind uint32, sectors int) error {
	b := make([]byte, sector)
	binary.LittleEndian.PutUint64(b, uint64(sectors))
	binary.LittleEndian.PutUint32(b[12:], kind)
	return s.write(b)
}

func (s *stream) end() error {
	if err := s.endTable(); err != nil {
		return err
	}
	directory := entries(s.directory)
	if err := s.mark(markDirectory, len(directory)/sector); err != nil {
		return err
	}
	at := s.at
	if err := s.write(directory); err != nil {
		return err
	}
	if err := s.mark(markFooter, 1); err != nil {
		return err
	}
	if err := s.write(header(s.capacity, at)); err != nil {
		return err
	}
	return s.mark(markEnd, 0)
}

// entries encodes a table in whole sectors.
func entries(table []uint32) []byte {
	b := make([]byte, 0, (len(table)*4+sector-1)/sector*sector)
	for _, e := range table {
		b = binary.LittleEndian.AppendUint32(b, e)
	}
	return append(b, bytes.Repeat([]byte{0}, cap(b)-len(b))...)
}
