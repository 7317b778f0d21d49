// Package exchangetest reads the messages of nftables transactions and writes answers, for tests that stand in for the
// kernel.
package exchangetest

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// SeqsOf returns the sequence numbers of the messages of a transaction, including those that begin and end the batch.
func SeqsOf(raw []byte) (seqs []uint32) {
	for len(raw) >= unix.NLMSG_HDRLEN {
		seqs = append(seqs, binary.NativeEndian.Uint32(raw[8:]))
		size := (int(binary.NativeEndian.Uint32(raw)) + 3) &^ 3
		raw = raw[size:]
	}
	return seqs
}

// Ack returns the kernel's answer to a message (struct nlmsgerr): an acknowledgement if code is 0, else an error.
func Ack(seq uint32, code unix.Errno) []byte {
	raw := make([]byte, 36)
	binary.NativeEndian.PutUint32(raw, 36)
	binary.NativeEndian.PutUint16(raw[4:], unix.NLMSG_ERROR)
	binary.NativeEndian.PutUint32(raw[8:], seq)
	binary.NativeEndian.PutUint32(raw[16:], uint32(-int32(code))) //nolint:gosec // an errno
	return raw
}
