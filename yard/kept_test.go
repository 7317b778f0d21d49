package yard_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/attach"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/event"
	yown "netyard/yard/own"
	"netyard/yard/pool"
	"netyard/yard/reconcile"
)

// losses returns ways to lose the records while their copy is intact.
func losses() map[string]func(t *testing.T, path string) {
	write := func(change func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			raw, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, change(raw), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return map[string]func(*testing.T, string){
		"missing": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
		"missing, and the notes": func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Remove(path+".notes")); err != nil {
				t.Fatal(err)
			}
		},
		"empty":     write(func([]byte) []byte { return nil }),
		"zeros":     write(func(raw []byte) []byte { return make([]byte, len(raw)) }),
		"cut off":   write(func(raw []byte) []byte { return raw[:3*4096] }),
		"one page":  write(func(raw []byte) []byte { return raw[:4096] }),
		"something": write(func([]byte) []byte { return []byte("something else\n") }),
		"half a page": write(func(raw []byte) []byte {
			for at := 2 * 4096; at < len(raw); at += 4096 {
				copy(raw[at+2048:at+4096], make([]byte, 2048))
				copy(raw[at:at+16], "................")
			}
			return raw
		}),
	}
}

// A closing is something that an admin closed, on a host with a network of netyard's own and two containers on it.
type closing struct {
	options map[string]string // of the network, when it is made
	close   func(r *rig, n modes.Network, app modes.Endpoint) error
	// internal: the network has no way out.
	internal bool
}

func closings() map[string]closing {
	set := func(options map[string]string) func(*rig, modes.Network, modes.Endpoint) error {
		return func(r *rig, n modes.Network, _ modes.Endpoint) error {
			_, err := r.ChangeNetwork(r.t.Context(), n.ID, options)
			return err
		}
	}
	setOne := func(options map[string]string) func(*rig, modes.Network, modes.Endpoint) error {
		return func(r *rig, n modes.Network, app modes.Endpoint) error {
			_, err := r.ChangeEndpoint(r.t.Context(), n.ID, app.ID, options)
			return err
		}
	}
	apply := func(text string) func(*rig, modes.Network, modes.Endpoint) error {
		return func(r *rig, _ modes.Network, _ modes.Endpoint) error {
			_, err := enforce.ApplyPolicies(r.t.Context(), r.Book, parsed(r.t, text), false)
			return err
		}
	}
	return map[string]closing{
		"policy, by name":              {close: apply("name: a\nselect: {container: app}\ningress: {}")},
		"policy, by label":             {close: apply("name: a\nselect: {labels: {tier: app}}\ningress: {}\negress: {}")},
		"policy, by network":           {close: apply("name: a\nselect: {network: web}\ningress: {allow: [{container: nobody}]}")},
		"policy, of a denial":          {close: apply("name: a\ningress: {default: allow, deny: [{container: client}]}")},
		"policies, two":                {close: apply("name: a\ningress: {default: allow}\n---\nname: b\nselect: {container: app}\ningress: {}")},
		"icc=false, later":             {close: set(map[string]string{"icc": "false"})},
		"icc=false, from the start":    {options: map[string]string{"icc": "false"}},
		"publish_from, later":          {close: set(map[string]string{"publish_from": "192.0.2.0/24"})},
		"rates, of an endpoint":        {close: setOne(map[string]string{"egress_rate": "10mbit"})},
		"publish_from, narrower later": {options: map[string]string{"publish_from": "192.0.2.0/24"}, close: set(map[string]string{"publish_from": "192.0.2.1/32"})},
		"antispoof, later":             {options: map[string]string{"antispoof": "false"}, close: set(map[string]string{"antispoof": "true"})},
		"antispoof, from the start":    {},
		"rates, later":                 {close: set(map[string]string{"egress_rate": "10mbit"})},
		"internal":                     {internal: true},
	}
}

// made returns a rig with one closing.
func (c closing) made(t *testing.T) (r *rig, n modes.Network, client, app place, was modes.Endpoint) {
	t.Helper()
	r, client, app = newRig(t), newPlace(t), newPlace(t)
	n, err := yown.CreateNetwork(t.Context(), r.Yard, book.NetworkRequest{
		Name: "web", Options: c.options, Internal: c.internal,
		Subnets: []book.SubnetRequest{{Pool: ipam.PoolRequest{Subnet: netip.MustParsePrefix("10.9.0.0/24")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]place{"client": client, "app": app} {
		q := p.request(n, name)
		q.Container = owners()[name]
		if name == "app" {
			q.Ports = []book.PortRequest{{Proto: "tcp", ContainerPort: 80, HostPort: 8080, HostPortEnd: 8080}}
		}
		a, err := attach.Attach(t.Context(), r.Yard, q)
		if err != nil {
			t.Fatal(err)
		}
		if name == "app" {
			was = a.Endpoint
		}
	}
	if c.close != nil {
		if err := c.close(r, n, was); err != nil {
			t.Fatal(err)
		}
	}
	return r, n, client, app, was
}

func owners() map[string]modes.Container {
	return map[string]modes.Container{
		"client": {Engine: book.Containerd, ID: "c1", Name: "client", Labels: map[string]string{}},
		"app":    {Engine: book.Containerd, ID: "c2", Name: "app", Labels: map[string]string{"tier": "app"}},
	}
}

// lose ends the daemon, loses the records, and starts another.
func (r *rig) lose(how func(*testing.T, string)) {
	r.t.Helper()
	if err := r.st.Close(); err != nil {
		r.t.Fatal(err)
	}
	how(r.t, r.path)
	r.begin(true)
	if ns, err := r.Networks(); err != nil || len(ns) > 0 {
		r.t.Fatalf("the records are not lost: %v %v", ns, err)
	}
	if err := r.st.Update(reconcile.MarkRecordsLost); err != nil {
		r.t.Fatal(err)
	}
}

// found returns what FindIn finds in the sandboxes; who has their containers.
func (r *rig) found(who map[string]modes.Container, places map[string]place) reconcile.Census {
	r.t.Helper()
	census := reconcile.Census{Engine: book.Containerd, Endpoints: map[string]reconcile.SeenEndpoint{}}
	for name, p := range places {
		found, err := reconcile.FindIn(r.Yard, p.path)
		if err != nil || len(found) != 1 {
			r.t.Fatalf("in the sandbox of %s there is %+v %v", name, found, err)
		}
		for id, s := range found {
			s.Container, s.Attachment = who[name], name
			census.Endpoints[id] = s
		}
	}
	return census
}

func (r *rig) rebuilds(c reconcile.Census) {
	r.t.Helper()
	err := reconcile.Rebuild(r.t.Context(), r.Yard, reconcile.Census{Engine: book.Docker},
		func(ctx context.Context) error { return reconcile.RebuildOwn(ctx, r.Yard, c) })
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestClosedOverLoss shows that for each closing and each loss of the records the kernel enforces the same as before at
// each moment: when the daemon is back, while and after the records are rebuilt, and after one more restart.
func TestClosedOverLoss(t *testing.T) {
	t.Parallel()
	ways := losses()
	for what, c := range closings() {
		for how, lose := range ways {
			if how != "missing" && what != "policy, by name" {
				continue // each way for one closing, and each closing in one way
			}
			t.Run(what+", "+how, func(t *testing.T) {
				t.Parallel()
				r, _, client, app, _ := c.made(t)
				was := r.host.Dump(t)
				same := func(when string) {
					t.Helper()
					if is := r.host.Dump(t); is != was {
						t.Errorf("%s: the kernel has\n%s\nand had\n%s", when, is, was)
					}
				}
				r.lose(lose)
				same("the daemon is back")
				r.step = func(step string) { same(step) }
				r.rebuilds(r.found(owners(), map[string]place{"client": client, "app": app}))
				r.step = func(string) {}
				same("rebuilt")
				r.healthy("rebuilt")
				r.start()
				same("after another restart")
				r.healthy("after another restart")
			})
		}
	}
}

// TestClosedOverReboot shows that after a power loss and the loss of the records, when the kernel has nothing, policies
// apply to the first container from its first packet.
func TestClosedOverReboot(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"missing", "zeros"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			lose := losses()[how]
			r, client, app := newRig(t), newPlace(t), newPlace(t)
			n := r.made()
			r.apply("name: a\nselect: {container: app}\ningress: {}")
			if err := pool.Reserve(r.Yard, "10.9.0.0/24", netip.MustParseAddr("10.9.0.9"), "db"); err != nil {
				t.Fatal(err)
			}
			r.host.Sh(t, "nft flush ruleset; for l in $(ls /sys/class/net | grep ^ny); do ip link del $l; done")
			r.boot = "boot-2"
			r.lose(lose)
			r.rebuilds(reconcile.Census{Engine: book.Containerd, Endpoints: map[string]reconcile.SeenEndpoint{}})
			if ps, err := enforce.Policies(r.Book); err != nil || len(ps) != 1 || ps[0].Name != "a" {
				t.Errorf("policies are %+v, %v", ps, err)
			}
			r.reserved("10.9.0.9 for db")
			var to string
			for name, p := range map[string]place{"client": client, "app": app} {
				// nobody knows yet whose it is
				a, err := attach.Attach(t.Context(), r.Yard, p.request(r.again(n), name))
				if err != nil {
					t.Fatal(err)
				}
				if name == "app" {
					to = a.Endpoint.Addrs[0].Addr().String()
				}
			}
			for _, who := range []modes.Container{{}, owners()["app"]} {
				if err := r.identifies(n, "app", who); err != nil {
					t.Fatal(err)
				}
				if out, err := client.TrySh("ping -c 1 -W 1 " + to); err == nil {
					t.Errorf("app is reachable from client, named %q: %s", who.Name, out)
				}
			}
			if err := r.identifies(n, "app", modes.Container{
				Engine: book.Containerd, ID: "c3", Name: "other", Labels: map[string]string{},
			}); err != nil {
				t.Fatal(err)
			}
			// It is reached at first, or the test could not fail.
			client.Sh(t, "for i in 1 2 3 4 5; do ping -c 1 -W 2 "+to+" && exit; done; exit 1")
		})
	}
}

// identifies records the container of an attachment.
func (r *rig) identifies(n modes.Network, attachment string, who modes.Container) error {
	es, err := r.Attachments(n.ID)
	if err != nil {
		return err
	}
	for _, e := range es {
		if e.Attachment == attachment && who.Name != "" {
			return reconcile.Reconcile(r.t.Context(), r.Yard, reconcile.Census{
				Engine: book.Containerd, Endpoints: map[string]reconcile.SeenEndpoint{
					e.ID: {NetworkID: n.ID, Container: who},
				},
				Attachments: map[string]bool{"client": true, "app": true},
			})
		}
	}
	return nil
}

// reserved fails the test unless there are just these reservations.
func (r *rig) reserved(want ...string) {
	r.t.Helper()
	ls, _, err := pool.Leases(r.Yard)
	if err != nil {
		r.t.Fatal(err)
	}
	var got []string
	for _, l := range ls {
		if l.Reserved {
			got = append(got, strings.TrimSuffix(l.Addr.String()+" for "+l.ReservedFor, " for "))
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		r.t.Errorf("reserved are %q, want %q", got, want)
	}
}

// TestReservedOverLoss shows that reservations survive the loss of the records, also those of addresses in use, and are
// removed with their networks.
func TestReservedOverLoss(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"missing", "cut off"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			lose := losses()[how]
			r, p, q := newRig(t), newPlace(t), newPlace(t)
			n := r.made()
			// It has an address that is another one's in future.
			a, err := attach.Attach(t.Context(), r.Yard, func() book.AttachRequest {
				ask := p.request(n, "p")
				ask.Container = owners()["client"]
				return ask
			}())
			if err != nil {
				t.Fatal(err)
			}
			taken := a.Endpoint.Addrs[0].Addr()
			for addr, name := range map[netip.Addr]string{
				taken: "app", netip.MustParseAddr("10.9.0.9"): "",
				netip.MustParseAddr("10.9.0.8"): "db", netip.MustParseAddr("10.9.0.7"): "x",
			} {
				if err := pool.Reserve(r.Yard, "10.9.0.0/24", addr, name); err != nil {
					t.Fatal(err)
				}
			}
			if err := pool.Forget(r.Yard, "10.9.0.0/24", netip.MustParseAddr("10.9.0.7")); err != nil {
				t.Fatal(err)
			}
			r.lose(lose)
			r.rebuilds(r.found(map[string]modes.Container{"p": owners()["client"]}, map[string]place{"p": p}))
			r.reserved(taken.String()+" for app", "10.9.0.8 for db", "10.9.0.9")
			ask := q.request(r.again(n), "q")
			ask.Container, ask.Addrs = owners()["client"], []netip.Addr{netip.MustParseAddr("10.9.0.8")}
			if _, err := attach.Attach(t.Context(), r.Yard, ask); !errors.Is(err, ipam.ErrTaken) {
				t.Errorf("another one asked for a reserved address: %v", err)
			}
			if err := attach.Detach(t.Context(), r.Yard, p.end(n, "p")); err != nil {
				t.Fatal(err)
			}
			r.healthy("rebuilt")
			if _, err := yown.RemoveNetwork(t.Context(), r.Yard, "web"); err != nil {
				t.Fatal(err)
			}
			r.reserved()
			r.made()
			r.reserved() // the next of that subnet has none of them
		})
	}
}

// TestPoliciesLost shows that after the loss of the records and their copy the policies in the kernel stay in force,
// over the rebuild and restarts, that doctor, the log and the events report the loss, that policies which are applied
// again replace those in the kernel, and that gc ends the state.
func TestPoliciesLost(t *testing.T) {
	t.Parallel()
	for how, lose := range map[string]func(t *testing.T, path string){
		"both missing": func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Remove(path+".kept")); err != nil {
				t.Fatal(err)
			}
		},
		"both damaged": func(t *testing.T, path string) {
			if err := errors.Join(os.Truncate(path, 100), os.Truncate(path+".kept", 100)); err != nil {
				t.Fatal(err)
			}
		},
		"the copy empty": func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Truncate(path+".kept", 0)); err != nil {
				t.Fatal(err)
			}
		},
		"of a former version": func(t *testing.T, path string) {
			if err := errors.Join(os.Truncate(path, 4096), os.Remove(path+".kept")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		for killed := range 2 {
			t.Run(fmt.Sprintf("%s, after %d that were killed", how, killed), func(t *testing.T) {
				t.Parallel()
				c := closings()["policy, by name"]
				r, _, client, app, was := c.made(t)
				addr := was.Addrs[0].Addr().String()
				shut := func(when string) {
					t.Helper()
					if out, err := client.TrySh("ping -c 1 -W 1 " + addr); err == nil {
						t.Errorf("%s: app is reachable from client: %s", when, out)
					}
				}
				shut("at first")
				r.lose(func(t *testing.T, path string) {
					lose(t, path)
					for range killed { // a daemon that was killed before it had found out what was lost
						st, err := store.Open(t.Context(),
							store.Config{
								Path: path, FlushDelay: time.Hour, CopiedBuckets: book.KeptBuckets(), Verify: verify,
							})
						must(t, err)
						must(t, st.Close())
					}
				})
				shut("the daemon is back")
				r.rebuilds(r.found(owners(), map[string]place{"client": client, "app": app}))
				shut("rebuilt")
				r.finds(book.LostText)
				evs, _ := r.Events(0)
				if !slices.ContainsFunc(evs, func(e event.Event) bool { return e.Type == event.PoliciesLost }) {
					t.Errorf("events: %+v", evs)
				}
				all := "count as complete: "
				if done, err := reconcile.GC(t.Context(), r.Yard, nil, true); err != nil || len(done) != 1 ||
					!strings.HasSuffix(done[0].Text, all+"none") {
					t.Errorf("a dry run of gc would %+v, %v", done, err)
				}
				r.start()
				shut("after a restart")
				r.finds(book.LostText)
				r.apply("name: b\nselect: {container: client}\negress: {allow: [{ports: 81}]}")
				shut("another policy is applied")
				r.apply("name: a\nselect: {container: app}\ningress: {allow: [{ports: 80}]}")
				shut("it is applied again")
				if _, err := enforce.RemovePolicy(t.Context(), r.Book, "b"); err != nil {
					t.Fatal(err)
				}
				if done, err := reconcile.GC(t.Context(), r.Yard, nil, false); err != nil || len(done) == 0 ||
					!strings.HasSuffix(done[0].Text, all+"a") {
					t.Fatalf("gc says %+v: %v", done, err)
				}
				shut("these are all")
				r.healthy("these are all")
				if _, err := enforce.RemovePolicy(t.Context(), r.Book, "a"); err != nil {
					t.Fatal(err)
				}
				client.Sh(t, "for i in 1 2 3 4 5; do ping -c 1 -W 2 "+addr+" && exit; done; exit 1")
				r.healthy("at the end")
			})
		}
	}
}

// TestNothingLost shows that no loss is reported on a host where netyard never ran, or that has its records.
func TestNothingLost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.healthy("fresh")
	r.start()
	r.healthy("started again")
	if err := r.st.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.path + ".kept"); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.healthy("upgraded")
	if _, err := os.Stat(r.path + ".kept"); err != nil {
		t.Errorf("there is no copy: %v", err)
	}
}

// TestKeptByNobody shows that changes of networks and endpoints which no longer exist are removed when the records are
// rebuilt.
func TestKeptByNobody(t *testing.T) {
	t.Parallel()
	r, n, _, _, was := closing{}.made(t)
	if _, err := r.ChangeNetwork(t.Context(), n.ID, map[string]string{"icc": "false"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ChangeEndpoint(t.Context(), n.ID, was.ID, map[string]string{"egress_rate": "10mbit"}); err != nil {
		t.Fatal(err)
	}
	r.lose(losses()["missing"])
	if err := os.RemoveAll(filepath.Join(filepath.Dir(r.path), "networks")); err != nil {
		t.Fatal(err)
	}
	r.rebuilds(reconcile.Census{Engine: book.Containerd, Endpoints: map[string]reconcile.SeenEndpoint{}})
	err := r.st.View(func(tx store.Tx) error {
		if left := slices.Concat(book.Changes.Keys(tx, ""), book.Keeps.Keys(tx, "")); len(left) > 0 {
			t.Errorf("there is still %q", left)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPolicyRefusedWithoutCopy shows that a policy whose copy cannot be written is refused, and is neither in force nor
// on record.
func TestPolicyRefusedWithoutCopy(t *testing.T) {
	t.Parallel()
	r, _, _, _, _ := closing{}.made(t)
	r.apply("name: a\nselect: {container: app}\ningress: {}")
	was := r.host.Dump(t)
	if err := os.MkdirAll(r.path+".kept.new/x", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := enforce.ApplyPolicies(t.Context(), r.Book, parsed(t, "name: b\negress: {}"), false); err == nil {
		t.Error("a policy was applied without a copy")
	}
	if _, err := enforce.RemovePolicy(t.Context(), r.Book, "a"); err == nil {
		t.Error("a policy was removed without a copy")
	}
	if ps, err := enforce.Policies(r.Book); err != nil || len(ps) != 1 || ps[0].Name != "a" {
		t.Errorf("policies are %+v %v", ps, err)
	}
	if is := r.host.Dump(t); is != was {
		t.Errorf("the kernel has\n%s\nand had\n%s", is, was)
	}
	r.healthy("after the refusals")
}

// TestOlderProgramBetween shows that changes which an admin makes with an older netyard, without kept records, hold
// when a newer one runs again.
func TestOlderProgramBetween(t *testing.T) {
	t.Parallel()
	r, n, _, _, was := closing{}.made(t)
	change := func(icc string) {
		t.Helper()
		_, err := r.ChangeNetwork(t.Context(), n.ID, map[string]string{"icc": icc})
		must(t, err)
	}
	change("false")
	change("true")
	must(t, second(r.ChangeEndpoint(t.Context(), n.ID, was.ID, map[string]string{"egress_rate": "10mbit"})))
	must(t, pool.Reserve(r.Yard, "10.9.0.0/24", netip.MustParseAddr("10.9.0.8"), "db"))
	r.apply("name: a\nselect: {container: app}\ningress: {}")
	r.reserved("10.9.0.8 for db")
	type raw = map[string]any
	reservations := store.Bucket[raw]{Name: ipam.CopiedBuckets()[0]}
	var keys []string
	var reserved []raw
	must(t, r.st.View(func(tx store.Tx) (err error) {
		keys = reservations.Keys(tx, "")
		reserved, err = reservations.List(tx, "")
		return err
	}))
	must(t, pool.Forget(r.Yard, "10.9.0.0/24", netip.MustParseAddr("10.9.0.8")))
	must(t, r.st.Close())

	copied, err := os.ReadFile(r.path + ".kept")
	must(t, err)
	older, err := store.Open(t.Context(), store.Config{Path: r.path, FlushDelay: time.Hour})
	must(t, err)
	must(t, older.Update(func(tx store.Tx) error {
		for i, key := range keys {
			must(t, reservations.Put(tx, key, reserved[i]))
		}
		net, err := book.GetNetwork(tx, n.ID)
		must(t, err)
		net.Changed = map[string]string{"icc": "false"}
		e, err := book.GetEndpoint(tx, n.ID, was.ID)
		must(t, err)
		e.Options, e.Fenced = map[string]string{"egress_rate": "1mbit"}, "it is another's"
		ps, err := book.Policies.List(tx, "")
		must(t, err)
		ps[0].Name = "b"
		return errors.Join(book.Networks.Put(tx, n.ID, net), book.PutEndpoint(tx, e), book.Policies.Delete(tx, "a"),
			book.Policies.Put(tx, "b", ps[0]))
	}))
	must(t, older.Close())
	must(t, os.WriteFile(r.path+".kept", copied, 0o600)) // it does not know of it

	for range 2 {
		r.start()
		net, err := r.Network(n.ID)
		must(t, err)
		e, err := r.Endpoint(n.ID, was.ID)
		must(t, err)
		if net.Given("icc") != "false" || e.Options["egress_rate"] != "1mbit" || e.Fenced == "" {
			t.Errorf("icc=%s, options %v, fenced: %q", net.Given("icc"), e.Options, e.Fenced)
		}
		ps, err := enforce.Policies(r.Book)
		must(t, err)
		if len(ps) != 1 || ps[0].Name != "b" {
			t.Errorf("policies are %v", ps)
		}
		r.reserved()
	}
	r.lose(losses()["missing"]) // the copy has the same
	r.rebuilds(r.found(owners(), nil))
	if ps, err := enforce.Policies(r.Book); err != nil || len(ps) != 1 || ps[0].Name != "b" {
		t.Errorf("policies are %v: %v", ps, err)
	}
	r.reserved()
}
