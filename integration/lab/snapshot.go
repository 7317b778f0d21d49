package lab

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	// settleTime is how long background work may take before a difference counts.
	settleTime = 40 * time.Second
	// threadSlack is how many threads the daemon may gain. Go starts one for each call that blocks, and keeps it.
	threadSlack = 32
)

// snapshotScript prints the state of a host, in sections.
const snapshotScript = `
section() { echo "## $1"; }
section link;      ip -d -o link
section address;   ip -o addr
section route;     ip -o -4 route show table all; ip -o -6 route show table all
section rule;      ip -o -4 rule; ip -o -6 rule
section neighbour; ip -o neigh show nud permanent; ip -o neigh show proxy
section fdb;       bridge fdb show
section nft;       nft -s list ruleset
section netns;     awk '$3 == "nsfs" && $2 !~ "/default$" { print $2 }' /proc/self/mounts
section file;      find /run/netyard /run/docker/plugins /run/netns /etc/cni -printf '%y %p\n' 2>/dev/null
true`

// noise matches what changes by itself or does not matter: numbers that the kernel counts up, timers, the carrier. Most
// begin with a literal, which is found fast: one expression of all alternatives would take most of a snapshot's time.
//
//nolint:gochecknoglobals // compiled once, as one expression would be
var noise = []*regexp.Regexp{
	regexp.MustCompile(`^\d+: `), regexp.MustCompile(`@if\d+`), regexp.MustCompile(`valid_lft \w+`),
	regexp.MustCompile(`preferred_lft \w+`), regexp.MustCompile(`expires \w+`), regexp.MustCompile(`linkdown\b`),
	regexp.MustCompile(`tentative\b`), regexp.MustCompile(`dadfailed\b`), regexp.MustCompile(`fdb_n_learned \d+`),
	regexp.MustCompile(`tso_max_size \d+`), regexp.MustCompile(`tso_max_segs \d+`),
	regexp.MustCompile(`pref medium\b`), regexp.MustCompile(`\\`),
}

// timers matches the timers of bridges and their ports.
var timers = regexp.MustCompile(`\b\w+_timer +[\d.]+`)

// These match lines about Docker's own two bridges. Docker gives them new MAC addresses at each boot, and, with the
// first container, IPv6 addresses that stay (lastingAddr).
var (
	dockerBridges = regexp.MustCompile(`\b(docker0|docker_gwbridge)\b`)
	hardware      = regexp.MustCompile(`\b([0-9a-f]{1,2}:){5}[0-9a-f]{1,2}\b`)
	lastingAddr   = regexp.MustCompile(`\b(fe80:|ff00:|ff02:)|^MAC dev `)
)

// harmless matches lines about what Docker creates at first need and then keeps: the built-in tables and chains of
// iptables, if empty, with their policy; and the effects of IPv6 forwarding being on.
var harmless = regexp.MustCompile(`^table ip6? (raw|mangle|nat|filter)` +
	`( chain (PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING)(: type .* policy (accept|drop);)?)?$` +
	`|^anycast |^(33:33|01:00:5e):.* self permanent$`)

// A Snapshot is the state of a host at one moment: links, addresses, routes, rules, permanent neighbours, forwarding
// entries, the nftables ruleset, the files that daemons leave in /run, and the open files and threads of netyard.
type Snapshot struct {
	lines   map[string]int // lines with their section as prefix, and how often each occurs
	open    map[string]int // open files of the daemon, by kind
	threads int            // 0: the daemon is not running
}

// Snapshot takes snapshots of the host until two in a row are the same: an engine rearranges its chains with each
// network, and netyard reacts.
func (h *Host) Snapshot() *Snapshot {
	t := h.report.TB()
	t.Helper()
	const tries, pause = 20, 150 * time.Millisecond
	s, err := h.takeSnapshot()
	for range tries {
		if err != nil {
			break
		}
		before := s
		time.Sleep(pause)
		if s, err = h.takeSnapshot(); err == nil && len(before.Diff(s)) == 0 {
			break
		}
	}
	if err != nil {
		t.Fatalf("lab: take a snapshot of %s: %v", h.Name, err)
	}
	return s
}

// SameAs fails the test unless the state of the host becomes that of the snapshot, within a time for background work to
// end. Order is not compared.
func (h *Host) SameAs(before *Snapshot) {
	t := h.report.TB()
	t.Helper()
	err := within(settleTime, func() error {
		now, err := h.takeSnapshot()
		if err != nil {
			return err
		}
		if diff := before.Diff(now); len(diff) > 0 {
			return errors.New(strings.Join(diff, "\n"))
		}
		return nil
	})
	if err != nil {
		t.Errorf("%s differs from the snapshot (- removed, + added, ~ changed):\n%v", h.Name, err)
	}
}

// takeSnapshot takes one snapshot.
func (h *Host) takeSnapshot() (*Snapshot, error) {
	out, err := h.TrySh(snapshotScript)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{lines: map[string]int{}}
	var section string
	var path []string // the table and the chain of a line of nft
	for line := range strings.SplitSeq(out, "\n") {
		if name, ok := strings.CutPrefix(line, "## "); ok {
			section = name
			continue
		}
		if section == "nft" {
			line, path = inRuleset(path, line)
		}
		if line = normal(line); line != "" {
			s.lines[section+"  "+line]++
		}
	}
	if pid := h.Netyard.PID(); pid != 0 {
		s.open, s.threads = openCounts(pid)
	}
	return s, nil
}

// normal returns a line without noise; empty if nothing else is in it.
func normal(line string) string {
	for _, n := range noise {
		line = n.ReplaceAllString(line, " ")
	}
	if strings.Contains(line, "_timer") {
		line = timers.ReplaceAllString(line, " ")
	}
	line = strings.Join(strings.Fields(line), " ")
	if harmless.MatchString(line) {
		return ""
	}
	if dockerBridges.MatchString(line) {
		line = hardware.ReplaceAllString(line, "MAC")
		if lastingAddr.MatchString(line) {
			return ""
		}
	}
	return line
}

// inRuleset prefixes a rule with its table and chain, so that it can be understood by itself. It also returns the path
// of the next line.
func inRuleset(path []string, line string) (string, []string) {
	line = strings.TrimSpace(line)
	if head, _, found := strings.Cut(line, " # progname "); found { // the owner of the table
		line = head
	}
	switch {
	case strings.HasPrefix(line, "#"):
		return "", path
	case line == "}" && len(path) > 0:
		return "", path[:len(path)-1]
	case strings.HasSuffix(line, "{"):
		path = append(slices.Clone(path), strings.TrimSuffix(line, " {"))
		return strings.Join(path, " "), path
	case line == "":
		return "", path
	}
	return strings.Join(path, " ") + ": " + line, path
}

// openCounts counts the open files of a process, by kind, and its threads. Unix sockets are not counted, since Docker
// keeps idle connections. A thread in another network namespace counts like an open file.
func openCounts(pid int) (map[string]int, int) {
	proc := fmt.Sprintf("/proc/%d", pid)
	counts := map[string]int{}
	unixSockets, _ := os.ReadFile(proc + "/net/unix")
	fds, _ := filepath.Glob(proc + "/fd/*")
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil {
			continue // closed meanwhile
		}
		kind, inode, numbered := strings.Cut(target, ":[")
		switch {
		case kind == "socket" && strings.Contains(string(unixSockets), " "+strings.TrimSuffix(inode, "]")+" "):
		case kind == "socket" && strings.Contains(string(unixSockets), " "+strings.TrimSuffix(inode, "]")+"\n"):
		case numbered && kind != "anon_inode":
			counts["open  "+kind]++
		default:
			counts["open  "+target]++
		}
	}
	home, _ := os.Readlink(proc + "/ns/net")
	tasks, _ := filepath.Glob(proc + "/task/*")
	for _, task := range tasks {
		if space, err := os.Readlink(task + "/ns/net"); err == nil && space != home {
			counts["thread  in another network namespace"]++
		}
	}
	return counts, len(tasks)
}

// Diff returns what was removed ("- …"), added ("+ …") and changed ("~ …"), a line each.
func (s *Snapshot) Diff(now *Snapshot) []string {
	diff := diffCounts(s.lines, now.lines)
	if s.threads > 0 && now.threads > 0 {
		for _, line := range diffCounts(s.open, now.open) {
			if strings.HasPrefix(line, "+") { // fewer are allowed
				diff = append(diff, line+" (netyard)")
			}
		}
		if now.threads > s.threads+threadSlack {
			diff = append(diff, fmt.Sprintf("+ netyard has %d threads, and had %d before", now.threads, s.threads))
		}
	}
	return diff
}

// diffCounts returns the differences of two sets of lines, with their counts.
func diffCounts(before, now map[string]int) []string {
	all := maps.Clone(before)
	maps.Copy(all, now)
	var diff []string
	for _, line := range slices.Sorted(maps.Keys(all)) {
		for range before[line] - now[line] {
			diff = append(diff, "- "+line)
		}
		for range now[line] - before[line] {
			diff = append(diff, "+ "+line)
		}
	}
	return joinChanged(diff)
}

// joinChanged replaces the two long lines of a link that changed by one with the differences.
func joinChanged(diff []string) []string {
	gone := map[string]int{} // link to the place of its line
	var joined []string
	for _, line := range diff {
		words := strings.Fields(line)
		if words[1] != "link" {
			joined = append(joined, line)
			continue
		}
		at, seen := gone[words[2]]
		if !seen {
			gone[words[2]] = len(joined)
			joined = append(joined, line)
			continue
		}
		other := strings.Fields(joined[at])
		if words[0] == "-" {
			words, other = other, words
		}
		joined[at] = "~ link  " + words[2] + changed(other[3:], words[3:])
	}
	return joined
}

// changed returns the words that differ between two lines.
func changed(before, now []string) string {
	if len(before) != len(now) {
		return fmt.Sprintf(" was %s\n  is %s", strings.Join(before, " "), strings.Join(now, " "))
	}
	var b strings.Builder
	for i := range before {
		if before[i] != now[i] {
			fmt.Fprintf(&b, " %s %s → %s", before[max(i-1, 0)], before[i], now[i])
		}
	}
	return b.String()
}
