// Package nfttest reads and writes the messages of an nftables transaction, for tests that stand in for the kernel.
package nfttest

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// SeqsOf returns the numbers of the messages of a transaction, with its first and last.
func SeqsOf(raw []byte) (seqs []uint32) {
	for len(raw) >= unix.NLMSG_HDRLEN {
		seqs = append(seqs, binary.NativeEndian.Uint32(raw[8:]))
		size := (int(binary.NativeEndian.Uint32(raw)) + 3) &^ 3
		raw = raw[size:]
	}
	return seqs
}

// Ack returns a kernel's answer to a message (struct nlmsgerr).
func Ack(seq uint32, code unix.Errno) []byte {
	raw := make([]byte, 36)
	binary.NativeEndian.PutUint32(raw, 36)
	binary.NativeEndian.PutUint16(raw[4:], unix.NLMSG_ERROR)
	binary.NativeEndian.PutUint32(raw[8:], seq)
	binary.NativeEndian.PutUint32(raw[16:], uint32(-int32(code))) //nolint:gosec // an errno
	return raw
}
