//go:build !failpoint

package daemon

// failpoint is used by crash tests to stop the daemon. A released daemon has none.
func failpoint() func(string) { return nil }
