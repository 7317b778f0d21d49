package yard_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/modes/all"
	"netyard/modes/modetest"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/pool"
	"netyard/yard/reconcile"
	"netyard/yard/yardtest"
)

// A world is a yard on a kernel that records and prints, which can be killed and started again. It has the engine's
// part, too: names for IDs, sandboxes, and who asks for what.
type world struct {
	dir    string
	boot   int
	now    time.Time
	kernel *yardtest.Kernel
	st     *store.Store
	y      *yard.Yard
	fabric modes.Fabric
	// step is called between any two steps of a change.
	step func(string)
	// names has a label for each ID, so that golden text has no random ones.
	names map[string]string
	// chosen are the IDs that netyard has chosen.
	chosen map[string]bool
	// asked are the addresses that Docker has asked for, by endpoint.
	asked map[string]netip.Prefix
	// tries counts the worlds that everywhere has made.
	tries int
}

// newWorld starts a host with one Ethernet link.
func newWorld(ctx context.Context, dir string) (*world, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	w := &world{
		dir: dir, boot: 1, now: time.Unix(1e9, 0).UTC(), names: map[string]string{}, chosen: map[string]bool{},
		asked: map[string]netip.Prefix{},
		kernel: yardtest.New(modetest.Facts{
			Link: map[string]core.LinkInfo{"eth0": modetest.Ethernet(ethernetMTU)},
			Addr: map[string][]netip.Prefix{"eth0": {netip.MustParsePrefix("192.0.2.1/24")}},
		}),
	}
	return w, w.start(ctx, false)
}

const ethernetMTU = 1500

func (w *world) db() string { return filepath.Join(w.dir, "netyard.db") }

// start starts the daemon; keepStrays: the records may have been lost.
func (w *world) start(ctx context.Context, keepStrays bool) (err error) {
	w.step = func(string) {}
	w.now = w.now.Add(time.Second)
	w.kernel.Reopen()
	w.kernel.Refuse = nil
	w.st, err = store.Open(ctx, store.Config{
		NoSync: true, Path: w.db(), FlushDelay: time.Hour, CopiedBuckets: book.KeptBuckets(), Verify: verify,
		Init: reconcile.MarkRecordsLost,
	})
	if err != nil {
		return err
	}
	w.y = yard.New(book.Config{
		Log: slog.New(slog.DiscardHandler), Store: w.st, Kernel: w.kernel, BootID: fmt.Sprint("boot-", w.boot),
		Copies: filepath.Join(w.dir, "networks"), Fabric: w.fabric, Now: func() time.Time { return w.now },
		IPAM:  ipam.New(ipam.Config{Now: func() time.Time { return w.now }}),
		Modes: all.On(modes.Env{Fabric: w.fabric}),
		Step:  func(s string) { w.step(s) }, Background: func(f func()) { f() },
	})
	if !keepStrays && w.st.Fresh {
		if err := reconcile.RecordsRebuilt(w.y); err != nil {
			return err
		}
	}
	if !keepStrays && reconcile.Rebuilding(w.y) { // as cli/daemon does
		if keepStrays, err = reconcile.HasStrays(w.y); err != nil {
			return err
		}
	}
	return reconcile.Restore(ctx, w.y, keepStrays)
}

// restart kills the daemon and starts it again.
func (w *world) restart(ctx context.Context) error {
	if err := leaveKilled(w.st, w.db(), false); err != nil {
		return err
	}
	return w.start(ctx, false)
}

// id returns the ID of what an engine calls by a name.
func (w *world) id(name string) string {
	const length = 8
	id := fmt.Sprintf("%x", sha256.Sum256([]byte(name)))[:2*length]
	if name != "" {
		w.names[id] = name
	}
	return id
}

// learn forgets the labels of IDs that are gone, and finds some for those that netyard has chosen since: the names of
// containers.
func (w *world) learn() error {
	es, err := w.y.Endpoints()
	if err != nil {
		return err
	}
	text := w.kernel.String()
	for id := range w.chosen {
		onRecord := slices.ContainsFunc(es, func(e modes.Endpoint) bool { return e.ID == id })
		if !onRecord && !strings.Contains(text, id) {
			delete(w.names, id)
			delete(w.chosen, id)
		}
	}
	w.label(es)
	return nil
}

// label finds labels for endpoints that have none.
func (w *world) label(es []modes.Endpoint) {
	for _, e := range es {
		if w.names[e.ID] != "" {
			continue
		}
		label := e.Attachment
		for n := 2; w.labelled(label); n++ {
			label = fmt.Sprint(e.Attachment, "-", n)
		}
		w.names[e.ID], w.chosen[e.ID] = label, true
	}
}

func (w *world) labelled(label string) bool {
	for _, l := range w.names {
		if l == label {
			return true
		}
	}
	return false
}

// plain returns text with labels in place of IDs.
func (w *world) plain(text string) string {
	for id, name := range w.names {
		text = strings.ReplaceAll(text, id, name)
		for _, prefix := range []string{
			core.BridgePrefix, core.VethPrefix, core.PeerPrefix, core.ShaperPrefix, core.VXLANPrefix,
		} {
			text = strings.ReplaceAll(text, core.Name(prefix, id), prefix+name)
		}
		text = strings.ReplaceAll(text, modes.Short(id), name)
	}
	return strings.ReplaceAll(text, "netyard:", "")
}

// createEndpoint creates an endpoint as it is.
func (w *world) createEndpoint(ctx context.Context, e modes.Endpoint) error {
	of := book.Holder{Network: e.NetworkID, Endpoint: e.ID}
	_, err := w.y.CreateEndpoint(ctx, of, func(modes.Network) (modes.Endpoint, error) { return e, nil })
	return err
}

func sandboxOf(container string) string { return "/run/netns/" + container }

// engineMoves moves a joined endpoint's link into the container, as Docker does.
func (w *world) engineMoves(ctx context.Context, n modes.Network, id, container string, link modes.Link) error {
	if link.SrcName == "" {
		return nil
	}
	e, err := w.y.Endpoint(n.ID, id)
	if err != nil {
		return err
	}
	p := sandbox.Plug{Link: link.SrcName, Name: link.DstPrefix + "0", Alias: core.Alias(n.ID, id), Addrs: e.Addrs}
	return w.kernel.Move(ctx, sandboxOf(container), p)
}

// state returns what the kernel has.
func (w *world) state() (string, error) {
	if err := w.learn(); err != nil {
		return "", err
	}
	lines := strings.Split(w.plain(w.kernel.String()), "\n")
	for i, line := range lines {
		name, elements, ok := strings.Cut(strings.TrimSuffix(line, " }"), " { ")
		if !ok || !strings.HasPrefix(line, "set ") {
			continue
		}
		all := strings.Split(elements, ", ")
		slices.Sort(all) // they were sorted by random IDs
		lines[i] = name + " { " + strings.Join(all, ", ") + " }"
	}
	return strings.Join(lines, "\n"), nil
}

// changes returns what was made and removed since it was called last. The elements of one transaction have no order.
func (w *world) changes() (string, error) {
	es, err := w.y.Endpoints()
	if err != nil {
		return "", err
	}
	w.label(es)
	var lines []string
	for _, line := range w.kernel.Journal() {
		lines = append(lines, w.plain(line)+"\n")
	}
	for from := 0; from < len(lines); {
		to := from + 1
		for to < len(lines) && isElement(lines[from]) && isElement(lines[to]) && lines[from][0] == lines[to][0] {
			to++
		}
		slices.Sort(lines[from:to])
		from = to
	}
	return strings.Join(lines, ""), nil
}

func isElement(line string) bool { return strings.HasPrefix(line[1:], " element ") }

// records returns what is on record: networks with their endpoints and holds, and leases.
func (w *world) records() (string, error) {
	if err := w.learn(); err != nil {
		return "", err
	}
	var out strings.Builder
	ns, err := w.y.Networks()
	if err != nil {
		return "", err
	}
	slices.SortFunc(ns, func(a, b modes.Network) int { return strings.Compare(a.Name, b.Name) })
	for _, n := range ns {
		fmt.Fprintf(&out, "network %s mode %s%s\n", n.Name, n.Mode, notReady(n.Phase))
		es, err := w.y.EndpointsOf(n.ID)
		if err != nil {
			return "", err
		}
		lines := []string{}
		for _, e := range es {
			line := fmt.Sprintf("\tendpoint %s %s %s", w.names[e.ID], w.y.State(e), prefixes(e.Addrs))
			for _, p := range e.Ports {
				line += fmt.Sprintf(" %s:%d->%d/%s", p.HostIP, p.HostPort, p.ContainerPort, p.Proto)
			}
			lines = append(lines, line)
		}
		slices.Sort(lines)
		for _, line := range lines {
			fmt.Fprintln(&out, line)
		}
	}
	hs, err := w.y.AllHolds()
	if err != nil {
		return "", err
	}
	for _, h := range hs {
		fmt.Fprintf(&out, "hold %s for %s\n", prefixes(h.Addrs), h.Attachment)
	}
	ls, _, err := pool.Leases(w.y)
	if err != nil {
		return "", err
	}
	for _, l := range ls {
		line := fmt.Sprintf("lease %s %s %s %s", l.Addr, l.Kind, l.State, l.Name)
		fmt.Fprintln(&out, strings.TrimSpace(line))
	}
	return w.plain(out.String()), nil
}

func notReady(p modes.Phase) string {
	switch p {
	case modes.Pending:
		return " pending"
	case modes.Deleting:
		return " deleting"
	case modes.Ready:
	}
	return ""
}

func prefixes(all []netip.Prefix) string {
	var words []string
	for _, p := range all {
		words = append(words, p.String())
	}
	return strings.Join(words, ",")
}

// findings returns what an audit finds, a line each; "ok": nothing.
func (w *world) findings(found []book.Finding) (string, error) {
	if err := w.learn(); err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "ok\n", nil
	}
	var lines []string
	for _, f := range found {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s: %s", f.Kind, f.Network, f.Text))+"\n")
	}
	slices.Sort(lines)
	return w.plain(strings.Join(lines, "")), nil
}

func (w *world) audit(ctx context.Context) (string, error) {
	found, err := reconcile.Audit(ctx, w.y, nil)
	if err != nil {
		return "", err
	}
	return w.findings(found)
}
