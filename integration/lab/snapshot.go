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
	// settleTime is how long background work has to end before a difference counts.
	settleTime = 40 * time.Second
	// threadSlack is by how much the daemon's threads may grow. Go starts one for each call that blocks, and keeps it.
	threadSlack = 32
)

// lookScript prints what a host is made of, in sections.
const lookScript = `
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

// noise is what changes by itself, or says nothing: numbers the kernel counts up, timers, the carrier.
var noise = regexp.MustCompile(`^\d+: |@if\d+|\b\w+_timer +[\d.]+|\b(valid_lft|preferred_lft|expires) \w+|` +
	`\b(linkdown|tentative|dadfailed|fdb_n_learned \d+|tso_max_size \d+|tso_max_segs \d+|pref medium)\b|\\`)

// dockers is a line about one of Docker's own two bridges. Docker gives them new hardware addresses at each boot, and
// IPv6 addresses when the first container comes, which stay.
var (
	dockers  = regexp.MustCompile(`\b(docker0|docker_gwbridge)\b`)
	hardware = regexp.MustCompile(`\b([0-9a-f]{1,2}:){5}[0-9a-f]{1,2}\b`)
	lasting  = regexp.MustCompile(`\b(fe80:|ff00:|ff02:)|^MAC dev `)
)

// harmless are lines about what Docker makes when it first needs it, and then keeps: the tables and chains that
// iptables always has, empty ones, with their policy; and what follows from IPv6 forwarding being on.
var harmless = regexp.MustCompile(`^table ip6? (raw|mangle|nat|filter)` +
	`( chain (PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING)(: type .* policy (accept|drop);)?)?$` +
	`|^anycast |^(33:33|01:00:5e):.* self permanent$`)

// A Snapshot is what a host is made of at one moment: links, addresses, routes, rules, permanent neighbours, forwarding
// entries, the nftables ruleset, the files that daemons leave in /run, and what the netyard process holds.
type Snapshot struct {
	lines   map[string]int // each with its section in front, and how often it is there
	held    map[string]int // open files of the daemon, by kind
	threads int            // 0: the daemon is not running
}

// Snapshot looks at the host until it looks the same twice: an engine rearranges its chains with each network, and
// netyard follows.
func (h *Host) Snapshot() *Snapshot {
	t := h.report.TB()
	t.Helper()
	const tries, pause = 20, 150 * time.Millisecond
	s, err := h.look()
	for range tries {
		if err != nil {
			break
		}
		before := s
		time.Sleep(pause)
		if s, err = h.look(); err == nil && len(before.Diff(s)) == 0 {
			break
		}
	}
	if err != nil {
		t.Fatalf("lab: look at %s: %v", h.Name, err)
	}
	return s
}

// SameAs fails the test if the host does not become what it was at the snapshot. Background work gets time to settle.
// The order of things is not compared.
func (h *Host) SameAs(before *Snapshot) {
	t := h.report.TB()
	t.Helper()
	err := within(settleTime, func() error {
		now, err := h.look()
		if err != nil {
			return err
		}
		if diff := before.Diff(now); len(diff) > 0 {
			return errors.New(strings.Join(diff, "\n"))
		}
		return nil
	})
	if err != nil {
		t.Errorf("%s is not what it was (- gone, + come, ~ changed):\n%v", h.Name, err)
	}
}

func (h *Host) look() (*Snapshot, error) {
	out, err := h.TrySh(lookScript)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{lines: map[string]int{}}
	var section string
	var path []string // the table and the chain that a line of nft is in
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
		s.held, s.threads = held(pid)
	}
	return s, nil
}

// normal is a line without what is noise in it; empty if it is nothing else.
func normal(line string) string {
	line = strings.Join(strings.Fields(noise.ReplaceAllString(line, " ")), " ")
	if harmless.MatchString(line) {
		return ""
	}
	if dockers.MatchString(line) {
		line = hardware.ReplaceAllString(line, "MAC")
		if lasting.MatchString(line) {
			return ""
		}
	}
	return line
}

// inRuleset puts the table and the chain in front of a rule, so that it means something by itself.
func inRuleset(path []string, line string) (string, []string) {
	line = strings.TrimSpace(line)
	if head, _, found := strings.Cut(line, " # progname "); found { // whose table it is
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

// held counts what a process has open, by kind, and its threads. Unix sockets are not counted: Docker keeps idle
// connections. A thread in a foreign network namespace counts as something held.
func held(pid int) (map[string]int, int) {
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

// Diff says what has gone ("- …"), come ("+ …") and changed ("~ …"), a line each.
func (s *Snapshot) Diff(now *Snapshot) []string {
	diff := diffCounts(s.lines, now.lines)
	if s.threads > 0 && now.threads > 0 {
		for _, line := range diffCounts(s.held, now.held) {
			if strings.HasPrefix(line, "+") { // it may hold less
				diff = append(diff, line+" (netyard)")
			}
		}
		if now.threads > s.threads+threadSlack {
			diff = append(diff, fmt.Sprintf("+ netyard has %d threads, and had %d", now.threads, s.threads))
		}
	}
	return diff
}

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

// joinChanged replaces the two lines of a link that is there in both by what is different: they are long.
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
