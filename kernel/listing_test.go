package kernel_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"netyard/kernel/beside"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/nft"
	"netyard/kernel/policy"
	"netyard/kernel/ports"
	"netyard/kernel/rule"
)

// nfts returns the commands to test with: nft, and others that NETYARD_NFT names.
func nfts() []string { return append([]string{"nft"}, strings.Fields(os.Getenv("NETYARD_NFT"))...) }

// everySet returns elements of all sets that netyard adds elements to.
func everySet() []core.Object {
	all := append(elements(), guard()...)
	all = append(all, bridge.PortGuard{
		Port: "nyv-b", MAC: net.HardwareAddr{0, 0, 0, 1, 0, 2}, Addrs: []netip.Addr{netip.MustParseAddr("fd00:1::3")},
	}.Objects()...)
	all = append(all, policy.ObjectsWith(true, append(subjects(), allOfPolicy()...))...)
	four := func(s string) string { return string(netip.MustParseAddr(s).AsSlice()) }
	return append(all,
		nft.Element{Set: "back4", Key: four("10.1.0.9"), Content: nft.Content{Val: four("192.0.2.1")}},
		nft.Element{Set: "back6", Key: four("fd00:1::9"), Content: nft.Content{Val: four("2001:db8::1")}},
		nft.Element{
			Set: "own6", Key: four("fd00:1::9") + rule.PortKey("tcp", 443),
			Content: nft.Content{Val: four("fd00:1::9") + rule.PaddedPort(8443)},
		},
	)
}

// elementLists matches the elements of a set, which are in any order.
var elementLists = regexp.MustCompile(`elements = \{[^}]*\}`)

// listing returns what nft lists, with the elements of each set in order.
func listing(t *testing.T, h *kerneltest.Host, nft string) string {
	t.Helper()
	return elementLists.ReplaceAllStringFunc(h.Sh(t, nft+" list ruleset"), func(all string) string {
		elements := strings.Split(strings.Trim(strings.TrimPrefix(all, "elements = "), "{ }"), ",")
		for i, e := range elements {
			elements[i] = strings.TrimSpace(e)
		}
		slices.Sort(elements)
		return "elements = { " + strings.Join(elements, ", ") + " }"
	})
}

// lookups returns what the rules in the kernel look up and do, and their comments. The rest of a rule differs once nft
// has listed and loaded it: checks of the family come and go, and one comparison becomes two.
func lookups(t *testing.T, h *kerneltest.Host, nft string) string {
	t.Helper()
	code := h.Sh(t, nft+" --debug=netlink list ruleset")
	code, _, _ = strings.Cut(code, "\ntable ")
	kept := regexp.MustCompile(`\[ (lookup|dynset|immediate|nat|masq|fib|ct load|byteorder) [^]]*\]|userdata = .*`)
	code = strings.Join(kept.FindAllString(code, -1), "\n")
	code = regexp.MustCompile(`.*hton\(reg \d+, 2, 1\) \]\n`).ReplaceAllString(code, "") // of one byte: no change
	return regexp.MustCompile(`userdata = \{ \\x00\S+?[0-9a-f]{16}\\x00.*`).ReplaceAllString(code, "the seal")
}

// TestListing shows that nft loads what it lists of every table of netyard's, as /etc/nftables.conf has it after
// `nft list ruleset`, that the rules and elements are then the same, and that the next daemon replaces the copy.
func TestListing(t *testing.T) {
	t.Parallel()
	for name, configure := range map[string]func(*kerneltest.Host) []core.Object{
		"empty": func(*kerneltest.Host) []core.Object { return nil },
		"full":  func(*kerneltest.Host) []core.Object { return everySet() },
		"obeys": func(h *kerneltest.Host) []core.Object {
			ports.LetHostFirewallDecide(h.Handle)
			return everySet()
		},
		"restricted": func(*kerneltest.Host) []core.Object {
			return []core.Object{beside.Forwarding{}, beside.Forwarding{IPv6: true}}
		},
	} {
		for _, cmd := range nfts() {
			t.Run(name+" "+filepath.Base(cmd), func(t *testing.T) {
				t.Parallel()
				listed(t, cmd, configure)
			})
		}
	}
}

func listed(t *testing.T, cmd string, configure func(*kerneltest.Host) []core.Object) {
	t.Helper()
	h := kerneltest.New(t)
	h.Sh(t, "ip link add docker0 type bridge") // of another manager
	load := func(open bool) {
		t.Helper()
		objects := configure(h)
		if open {
			h.LeaveTablesOpen()
		}
		if err := h.Ensure(t.Context(), objects...); err != nil {
			t.Fatal(err)
		}
		if err := h.LoadFirewall(); err != nil {
			t.Fatal(err)
		}
	}
	load(true)
	list := listing(t, h, cmd)
	empty := regexp.MustCompile(`(?m)^\t(?:set|map) (\S+) \{\n(?:\t\t[^e].*\n)*\t\}`)
	for _, set := range empty.FindAllStringSubmatch(list, -1) {
		if strings.Contains(list, `"nyv-b"`) && !strings.Contains(set[0], "timeout") {
			t.Errorf("set %s has no elements, so the test does not cover them", set[1])
		}
	}
	code := lookups(t, h, cmd)
	file := filepath.Join(t.TempDir(), "nftables.conf")
	if err := os.WriteFile(file, []byte("flush ruleset\n\n"+list+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Sh(t, cmd+" -c -f "+file+" && "+cmd+" -f "+file)
	if again := listing(t, h, cmd); again != list {
		t.Errorf("the listing of what was listed differs:\n%s", cmp.Diff(list, again))
	}
	if again := lookups(t, h, cmd); again != code {
		t.Errorf("the rules differ once listed and loaded:\n%s", cmp.Diff(code, again))
	}
	handle := func() string { return h.Sh(t, "nft -a list table inet netyard | head -1 | sed 's/.*handle//'") }
	copied := handle()
	h.Reopen(t)
	load(true)
	if handle() == copied {
		t.Error("the daemon took a copy of its tables that nft had loaded for its own")
	}
	if again := listing(t, h, cmd); again != list {
		t.Errorf("the daemon's tables differ from those of the former one:\n%s", cmp.Diff(list, again))
	}

	// A daemon that owns its tables owns them in the place of a copy, too.
	fresh := kerneltest.New(t)
	if err := fresh.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	owners := strings.Contains(fresh.Sh(t, "nft list ruleset"), "flags owner")
	if err := fresh.UnloadFirewall(); err != nil {
		t.Fatal(err)
	}
	h.Sh(t, cmd+" -f "+file)
	h.Reopen(t)
	load(false)
	if got := h.Sh(t, "nft list ruleset"); strings.Count(got, "flags owner") != map[bool]int{true: 2}[owners] {
		t.Errorf("the kernel has owners of tables: %t, and the tables are\n%.300s", owners, got)
	}
	if err := h.UnloadFirewall(); err != nil {
		t.Fatal(err)
	}
}

// TestListingOfSandbox shows the same for the table in a container's sandbox.
func TestListingOfSandbox(t *testing.T) {
	t.Parallel()
	h, sandbox := kerneltest.New(t), kerneltest.New(t)
	if err := h.Ensure(t.Context(), redirect(sandbox)); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range nfts() {
		list := sandbox.Sh(t, cmd+" list ruleset")
		file := filepath.Join(t.TempDir(), "nftables.conf")
		if err := os.WriteFile(file, []byte("flush ruleset\n"+list+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		sandbox.Sh(t, fmt.Sprintf("%s -c -f %s && %[1]s -f %[2]s", cmd, file))
		if again := sandbox.Sh(t, cmd+" list ruleset"); again != list {
			t.Errorf("the listing of what was listed differs:\n%s", cmp.Diff(list, again))
		}
	}
}

// TestOlderSets shows that elements of sets of an older version, with other keys, are not adopted.
func TestOlderSets(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.LeaveTablesOpen()
	h.Sh(t, `nft -f - <<-'E'
		table inet netyard {
			set vnis { type mark; elements = { 0x1234 }; }
			set vteps4 { type ipv4_addr . mark; elements = { 192.0.2.2 . 0x1234 }; }
			set members4 { type ipv4_addr; elements = { 192.0.2.2 }; }
		}
	E`)
	if err := h.AdoptFirewall(); err != nil {
		t.Fatal(err)
	}
	for set, want := range map[rule.SetName]bool{"vnis": false, "vteps4": false, "members4": true} {
		if got := h.Sh(t, "nft list set inet netyard "+string(set)); strings.Contains(got, "elements") != want {
			t.Errorf("adopted, want %t: %s", want, got)
		}
	}
}

// allOfPolicy returns subjects with the directions and families that those of subjects lack.
func allOfPolicy() []policy.Subject {
	all := func(a string) *policy.Access {
		first := netip.MustParseAddr(a)
		return &policy.Access{Allow: []policy.Allowance{
			{First: first, Last: first, FirstProto: 6, LastProto: 6, FirstPort: 80, LastPort: 80},
		}}
	}
	return []policy.Subject{
		{Port: "nyv-b", Bridge: "nyb-a", Addr: netip.MustParseAddr("fd00:1::3"), In: all("fd00:1::2"), Out: all("fd00:1::2")},
		{Port: "nyv-b", Bridge: "nyb-a", Addr: netip.MustParseAddr("10.1.0.3"), In: all("10.1.0.2"), Out: all("10.1.0.2")},
	}
}
