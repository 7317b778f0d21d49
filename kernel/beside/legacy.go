package beside

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"netyard/kernel/core"
)

// legacyTimeout bounds one run of iptables-legacy, which may wait for the xtables lock.
const legacyTimeout = 5 * time.Second

// SyncLegacyDockerUser does what SyncDockerUser does, on hosts whose Docker uses the old iptables interface. That
// interface replaces whole tables, so its own program is the only safe way to change one. The program runs only where
// the kernel says that such a table is in use, and only in the watcher, never during a request.
func SyncLegacyDockerUser(ctx context.Context, k *core.Handle) error {
	bypasses := slices.Collect(maps.Keys(bypassesOf(k)))
	for _, v := range []struct{ program, proc string }{
		{"iptables-legacy", "/proc/net/ip_tables_names"}, {"ip6tables-legacy", "/proc/net/ip6_tables_names"},
	} {
		used, err := LegacyUsed(k, v.proc)
		if err != nil || !used {
			continue // the kernel has no such interface, or nobody uses it
		}
		if err := syncLegacy(ctx, k, v.program, bypasses); err != nil {
			return err
		}
	}
	return nil
}

// LegacyUsed reports whether rules of the old iptables interface are in use; proc is the file that lists its tables.
func LegacyUsed(k *core.Handle, proc string) (used bool, err error) {
	err = k.Inside(func() error {
		// /proc/net shows the namespace of the process's main thread, /proc/thread-self/net that of this thread.
		raw, err := os.ReadFile(strings.Replace(proc, "/proc/net", "/proc/thread-self/net", 1))
		used = bytes.Contains(raw, []byte("filter"))
		return err
	})
	return used, err
}

func syncLegacy(ctx context.Context, k *core.Handle, program string, bypasses []Bypass) error {
	out, err := runProgram(ctx, k, program, "-w", "3", "-S", dockerUserChain)
	if err != nil {
		return nil //nolint:nilerr // there is no such chain or no such program: Docker does not use it either
	}
	var have []string
	last := 0
	for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
		if last > 0 && ownLegacy(line) { // behind the end, which Docker has added since: no packet reaches the rule
			if _, err := runProgram(ctx, k, program, "-w", "3", "-D", dockerUserChain, strconv.Itoa(i)); err != nil {
				return err
			}
			return syncLegacy(ctx, k, program, bypasses)
		}
		have = append(have, line)
		if line == "-A "+dockerUserChain+" -j RETURN" && last == 0 {
			last = i // line 0 is -N, so the rules count from 1, as iptables counts them
		}
	}
	for _, b := range bypasses {
		spec := b.legacyArgs()
		if slices.Contains(have, b.legacyLine()) {
			continue
		}
		args := append([]string{"-w", "3", "-A", dockerUserChain}, spec...)
		if last > 0 {
			args = append([]string{"-w", "3", "-I", dockerUserChain, strconv.Itoa(last)}, spec...)
		}
		if _, err := runProgram(ctx, k, program, args...); err != nil {
			return err
		}
	}
	return deleteUnwantedLegacy(ctx, k, program, bypasses, have)
}

// deleteUnwantedLegacy deletes the rules of netyard's that are no longer wanted.
func deleteUnwantedLegacy(ctx context.Context, k *core.Handle, program string, bypasses []Bypass, have []string) error {
	var want []string
	for _, b := range bypasses {
		want = append(want, b.legacyLine())
	}
	for _, line := range have {
		if !ownLegacy(line) || slices.Contains(want, line) {
			continue
		}
		args := append([]string{"-w", "3", "-D"}, splitLegacy(line)[1:]...)
		if _, err := runProgram(ctx, k, program, args...); err != nil {
			return err
		}
	}
	return nil
}

// ownLegacy reports whether a line of iptables -S is a rule of netyard's.
func ownLegacy(line string) bool {
	return strings.Contains(line, "--comment "+bypassComment+" ") ||
		strings.Contains(line, `--comment "`+bypassComment+" ")
}

func (b Bypass) legacyArgs() []string {
	var args []string
	if b.In != "" {
		args = append(args, "-i", b.In)
	}
	if b.Out != "" {
		args = append(args, "-o", b.Out)
	}
	return append(args, "-m", "comment", "--comment", b.comment(), "-j", "ACCEPT")
}

// legacyLine returns the rule as iptables-legacy -S prints it, which quotes a comment of two words.
func (b Bypass) legacyLine() string {
	line := "-A " + dockerUserChain + " " + strings.Join(b.legacyArgs(), " ")
	return strings.Replace(line, b.comment(), quoteLegacy(b.comment()), 1)
}

func quoteLegacy(s string) string {
	if strings.Contains(s, " ") {
		return `"` + s + `"`
	}
	return s
}

// splitLegacy splits a line of iptables -S into arguments; a quoted comment is one argument.
func splitLegacy(line string) []string {
	var args []string
	for i, part := range strings.Split(line, `"`) {
		if i%2 == 1 {
			args = append(args, part)
		} else {
			args = append(args, strings.Fields(part)...)
		}
	}
	return args
}

func runProgram(ctx context.Context, k *core.Handle, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, legacyTimeout)
	defer cancel()
	var out, errOut bytes.Buffer
	err := k.Inside(func() error {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Stdout, cmd.Stderr = &out, &errOut
		return cmd.Run()
	})
	if err != nil {
		said := strings.TrimSpace(errOut.String())
		return "", fmt.Errorf("run %s %s: %w: %s", program, strings.Join(args, " "), err, said)
	}
	return out.String(), nil
}
