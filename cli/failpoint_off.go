//go:build !failpoint

package cli

// failpoint is used by crash tests to stop the daemon. A released daemon has none.
func failpoint() func(string) { return nil }
