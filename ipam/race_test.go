//go:build race

package ipam

// The race detector makes each step ten times as long, and a transaction has no races.
const wholePoolBits = 19
