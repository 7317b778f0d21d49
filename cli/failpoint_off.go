//go:build !failpoint

package cli

// failpoint is where crash tests stop the daemon; a released one has none.
func failpoint() func(string) { return nil }
