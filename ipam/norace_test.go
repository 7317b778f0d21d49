//go:build !race

package ipam

const wholePoolBits = 16
