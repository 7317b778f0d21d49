package yardtest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"netyard/modes/modetest"
)

// String returns the state of the kernel: the objects in the order in which they were made, the sets with their
// elements, and the sandboxes with their links.
func (k *Kernel) String() string {
	var out strings.Builder
	for _, o := range k.objects {
		fmt.Fprintln(&out, modetest.Text(o))
	}
	sets := map[string][]string{}
	for _, e := range k.table {
		sets[string(e.Set)] = append(sets[string(e.Set)], e.Text)
	}
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		slices.Sort(sets[name])
		fmt.Fprintf(&out, "set %s { %s }\n", name, strings.Join(sets[name], ", "))
	}
	for _, b := range k.sandboxes {
		fmt.Fprintf(&out, "sandbox %s\n", b.path)
		for _, p := range b.links {
			fmt.Fprintf(&out, "\tlink %s alias %s\n", p.Name, p.Alias)
			for _, a := range p.Addrs {
				fmt.Fprintf(&out, "\taddr %s\n", a)
			}
			for _, r := range p.Routes {
				fmt.Fprintf(&out, "\troute %s\n", r)
			}
		}
	}
	return out.String()
}
