package cli

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pages are a mapping of memory, in bytes.
type pages struct{ from, size uintptr }

// ownPages are those of the program's file that are as they are in the file, out of
// /proc/self/smaps (proc_pid_smaps(5)). A mapping in which any page is not, for instance
// because the loader or a debugger wrote to it, is left out.
func ownPages(smaps, program string) (all []pages) {
	ours := false
	for line := range strings.Lines(smaps) {
		f := strings.Fields(line)
		if len(f) > 0 && !strings.HasSuffix(f[0], ":") {
			var p pages
			if p, ours = fileMapping(f, program); ours {
				all = append(all, p)
			}
			continue
		}
		if ours && len(f) > 1 && (f[0] == "Anonymous:" || f[0] == "Private_Dirty:" || f[0] == "Swap:") && f[1] != "0" {
			all, ours = all[:len(all)-1], false
		}
	}
	return all
}

// fileMapping reads the first line of a mapping, if that is of the program and nobody may
// write to it.
func fileMapping(f []string, program string) (p pages, is bool) {
	if len(f) != 6 || f[5] != program || f[1] != "r-xp" && f[1] != "r--p" {
		return p, false
	}
	low, high, _ := strings.Cut(f[0], "-")
	from, err := strconv.ParseUint(low, 16, 64)
	if err != nil {
		return p, false
	}
	to, err := strconv.ParseUint(high, 16, 64)
	if err != nil || to <= from {
		return p, false
	}
	return pages{uintptr(from), uintptr(to - from)}, true
}

// forgetStart gives back the pages of the program's file that are in memory: starting touches
// most of its 78 MB, and an upload needs few of them again, which come from the kernel's cache
// when they are touched. Where that cannot be done nothing is lost but memory.
func forgetStart() {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	for _, p := range ownPages(string(smaps), program) {
		// A refusal is an older kernel's or a sandbox's.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, p.from, p.size, unix.MADV_DONTNEED)
	}
}
