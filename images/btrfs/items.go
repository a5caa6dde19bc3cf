package btrfs

import (
	"encoding/binary"
	"slices"

	"github.com/imagectl/imagectl/images/fstree"
)

// The items of every tree but the file system's and the checksums'.

// rootItems names the root of each tree, and the subvolume to mount by
// default.
func (f *filesystem) rootItems(all []*tree) []item {
	made := timespec{Seconds: fstree.Entry{}.Unix(f.o.ModTime)}
	var out []item
	for _, t := range all {
		if t.id == idRootTree || t.id == idChunkTree {
			continue // the superblock names them
		}
		root := rootItem{
			Inode: inodeItem{Generation: generation, Size: 3, Bytes: nodeSize, Links: 1, Mode: modeDir | 0o755},
			At:    t.root(), Level: t.level(), BytesUsed: uint64(t.nodes()) * nodeSize,
			Generation: generation, GenerationV2: generation, Refs: 1,
		}
		switch t.id {
		case idFSTree:
			root.RootDir = idFirstFree
			root.Inode.Flags = rootItemInit
			root.UUID = f.rootUUID
			root.Times = [4]timespec{made, made}
		case idDataReloc:
			root.RootDir = idFirstFree
		}
		out = append(out, item{key{t.id, typeRootItem, 0}, encode(root)})
	}
	const name = "default"
	ref := func(name string) []byte { return append(encode(inodeRef{NameLength: uint16(len(name))}), name...) }
	out = append(out,
		item{key{idFSTree, typeInodeRef, idRootDir}, ref(name)},
		item{key{idRootDir, typeInode, 0}, encode(inodeItem{
			Generation: generation, Bytes: nodeSize, Links: 1, Mode: modeDir | 0o755,
			AccessTime: made, ChangeTime: made, ModTime: made, CreateTime: made,
		})},
		item{key{idRootDir, typeInodeRef, idRootDir}, ref("..")},
		item{key{idRootDir, typeDirItem, nameHash(name)}, append(encode(dirItem{
			Location: key{idFSTree, typeRootItem, 1<<64 - 1}, NameLength: uint16(len(name)), Type: 2, // BTRFS_FT_DIR
		}), name...)},
	)
	return sorted(out)
}

// uuidItems says which subvolume has the UUID of the root subvolume.
func (f *filesystem) uuidItems() []item {
	return []item{{
		key{binary.LittleEndian.Uint64(f.rootUUID[:8]), typeUUIDSubvol, binary.LittleEndian.Uint64(f.rootUUID[8:])},
		encode(uint64(idFSTree)),
	}}
}

// chunkItems describes the device and its two chunks.
func (f *filesystem) chunkItems(s *space) []item {
	system := chunkItem{
		Length: systemSize, Owner: idExtentTree, StripeLen: stripeLen, Type: groupSystem,
		IOAlign: sectorSize, IOWidth: sectorSize, SectorSize: sectorSize,
		Stripes: 1, Device: theDevice, Offset: systemStart, DeviceUUID: f.device,
	}
	mixed := system
	mixed.Length, mixed.Type, mixed.Offset = s.chunkSize(), groupData|groupMetadata, mixedStart
	mixed.IOAlign, mixed.IOWidth, mixed.SubStripes = stripeLen, stripeLen, 1
	return []item{
		{key{idDevItems, typeDevItem, theDevice}, encode(f.devItem(s))},
		{key{idFirstChunk, typeChunk, systemStart}, encode(system)},
		{key{idFirstChunk, typeChunk, mixedStart}, encode(mixed)},
	}
}

func (f *filesystem) devItem(s *space) devItem {
	return devItem{
		ID: theDevice, TotalBytes: f.size, BytesUsed: systemSize + s.chunkSize(),
		IOAlign: sectorSize, IOWidth: sectorSize, SectorSize: sectorSize,
		UUID: f.device, FSID: f.o.UUID,
	}
}

// devItems says which parts of the device belong to which chunk.
func (f *filesystem) devItems(s *space) []item {
	extent := func(start, length uint64) item {
		return item{key{theDevice, typeDevExtent, start}, encode(devExtent{
			ChunkTree: idChunkTree, ChunkObject: idFirstChunk, ChunkOffset: start, Length: length, ChunkUUID: f.chunkTree,
		})}
	}
	return []item{extent(systemStart, systemSize), extent(mixedStart, s.chunkSize())}
}

// freeItems lists the free space of both block groups.
func (f *filesystem) freeItems(s *space) []item {
	var out []item
	group := func(start, length uint64, free ...[2]uint64) {
		out = append(out, item{key{start, typeFreeInfo, length}, encode(freeSpaceInfo{Extents: uint32(len(free))})})
		for _, e := range free {
			out = append(out, item{key{e[0], typeFreeExtent, e[1]}, nil})
		}
	}
	group(systemStart, systemSize, [2]uint64{systemStart + nodeSize, systemSize - nodeSize})
	group(mixedStart, s.chunkSize(), s.free()...)
	return sorted(out)
}

// extentItems says who owns each piece in use, and how much of each block
// group that is.
func (f *filesystem) extentItems(s *space, all []*tree) []item {
	out := []item{
		{key{systemStart, typeBlockGroup, systemSize}, encode(blockGroupItem{Used: nodeSize, ChunkObject: idFirstChunk, Flags: groupSystem})},
		{key{mixedStart, typeBlockGroup, s.chunkSize()}, encode(blockGroupItem{Used: s.used(), ChunkObject: idFirstChunk, Flags: groupData | groupMetadata})},
	}
	for _, e := range f.extents {
		out = append(out, item{key{e.at, typeExtent, e.length}, encode(dataItem{
			Refs: 1, Generation: generation, Flags: extentData,
			RefType: typeDataRef, Root: idFSTree, Object: e.inode, Offset: e.offset, Count: 1,
		})})
	}
	for _, t := range all {
		t.each(func(at uint64, level uint8) {
			out = append(out, item{key{at, typeMetadata, uint64(level)}, encode(metadataItem{
				Refs: 1, Generation: generation, Flags: extentTreeBlock, RefType: typeTreeRef, Root: t.id,
			})})
		})
	}
	return sorted(out)
}

func sorted(items []item) []item {
	slices.SortFunc(items, func(a, b item) int { return compareKeys(a.key, b.key) })
	return items
}
