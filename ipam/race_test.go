//go:build race

package ipam

// With the race detector each step takes ten times as long, and steps within one transaction cannot race.
const wholePoolBits = 19
