package tftp

import (
	"errors"
	"fmt"
	"time"
)

// Codes of transfers that began and failed.
const (
	// CodeStalled: the client does not answer any more, or goes on too slowly.
	CodeStalled = "stalled"
	// CodeBrokenOff: the client said an error.
	CodeBrokenOff = "broken-off"
	// CodeFileMissing: the server cannot read the file.
	CodeFileMissing = "file-missing"
)

// smallBlocks is what the quirk small-blocks makes of a larger block size, in bytes
// (pxe/quirk, no. 31).
const smallBlocks = 1388

// meant says that a client which broke its transfer off has what it wanted: UEFI asks for
// the size first and aborts with error 8, ROMs do it with error 0.
func meant(err error) bool {
	broken := (*brokenOff)(nil)
	return errors.As(err, &broken) && (broken.code == 8 || broken.code == 0)
}

// why says what a transfer failed by and what to do, in one sentence with its code. The
// code is empty for one that did not fail.
func (t *transfer) why(err error) (code, reason string) {
	broken := (*brokenOff)(nil)
	switch {
	case err == nil || errors.Is(err, errStopping) || meant(err):
		return "", ""
	case errors.As(err, &broken):
		return CodeBrokenOff, fmt.Sprintf("%s: its firmware gave up with TFTP error %d%s after %s: look at its screen", t.name, broken.code, said(broken), t.progress())
	case errors.Is(err, errSlow):
		return CodeStalled, fmt.Sprintf("%s: after %s in %s it was cut off, for no program takes so long: look for packets that are lost on the way", t.name, t.progress(), (time.Duration(t.age) * tick).Truncate(time.Second))
	case t.oack == nil && len(t.data) < cap(t.data) && errors.Is(err, errSilent):
		return "", "" // most likely it has the file: some never acknowledge the last block (quirk 34)
	case errors.Is(err, errAnew) && t.acked > 0:
		return "", "" // it goes on; packets are lost now and then
	case errors.Is(err, errSilent), errors.Is(err, errAnew):
		return CodeStalled, t.silence(errors.Is(err, errAnew))
	}
	return CodeFileMissing, fmt.Sprintf("%s: the server cannot read the file, see its log: %v", t.name, err)
}

// silence is about a client that does not answer, or asks anew instead. How far it came
// says what to look for: small packets that arrive where full ones do not are the sign of a
// way that is narrower than its ends (netboot quirk 31).
func (t *transfer) silence(anew bool) string {
	sent := fmt.Sprintf("block %d of %d bytes was sent %d times", t.blocks, cap(t.data), 1+t.tries)
	if t.oack != nil {
		sent = fmt.Sprintf("the answer to its options was sent %d times", 1+t.tries)
	}
	end := "without an answer"
	if anew {
		end = "without an answer, and then it began again"
	}
	var hint string
	switch first := t.acked == 0 && t.answered; {
	case !t.answered:
		hint = "it was switched off or reset, or a packet filter lets only port 69 through: transfers come from other UDP ports"
	case first && cap(t.data) > smallBlocks:
		hint = fmt.Sprintf("its small packets arrive: where a tunnel or a VLAN makes them smaller than the server's MTU says, give it firmware: {quirks: [small-blocks]} in cluster.yaml (blocks of %d bytes), or the server's interface a smaller MTU", smallBlocks)
	case first && cap(t.data) > defaultBlockSize:
		hint = "its small packets arrive: it may not take blocks of this size; firmware: {quirks: [blksize-misunderstood]} in cluster.yaml makes them 512 bytes"
	default:
		hint = "it stopped in the middle: it was reset, its link went down, or its firmware has no more memory; look at its screen"
	}
	return fmt.Sprintf("%s: %s after %s, %s; %s", t.name, sent, t.progress(), end, hint)
}

// progress is how far it came.
func (t *transfer) progress() string {
	return fmt.Sprintf("%d of %d blocks of %d bytes", t.acked, t.size/int64(max(1, cap(t.data)))+1, cap(t.data))
}

// said is a client's error in RFC 1350's words and its own.
func said(e *brokenOff) string {
	meaning := map[uint16]string{1: "file not found", 2: "access violation", 3: "no room for it", 4: "illegal operation", 5: "unknown transfer"}[e.code]
	switch {
	case meaning != "" && e.text != "":
		return fmt.Sprintf(" (%s: %q)", meaning, e.text)
	case meaning != "":
		return " (" + meaning + ")"
	case e.text != "":
		return fmt.Sprintf(" (%q)", e.text)
	}
	return ""
}
