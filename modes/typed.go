package modes

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The options of a mode, by the type of their values: Row returns the row of the table, Of the value for a network. A
// record has only values that can be parsed here, since Table.Resolve checked them.
type (
	// A TextOption is an option of kind String.
	TextOption Option
	// A BoolOption is an option of kind Bool.
	BoolOption Option
	// An IntOption is an option of kind Int.
	IntOption Option
	// An EnumOption is an option of kind Enum.
	EnumOption Option
	// A LinkOption is an option of kind IfName.
	LinkOption Option
	// An AddrOption is an option of kind Addr4 or Addr6: its Kind says which.
	AddrOption Option
	// An AddrsOption is an option of kind Addrs.
	AddrsOption Option
	// A RoutesOption is an option of kind Routes.
	RoutesOption Option
	// A LinksOption is an option of kind IfNames.
	LinksOption Option
	// A SourcesOption is an option of kind Sources.
	SourcesOption Option
	// A PortsOption is an option of kind Ports.
	PortsOption Option
	// A RateOption is an option of kind Rate.
	RateOption Option
)

func (o Option) of(k Kind) Option {
	o.Kind = k
	return o
}

// Row returns the option's row of the table.
func (o TextOption) Row() Option { return Option(o).of(String) }

// Of returns the option's value for a network.
func (o TextOption) Of(n Network) string { return Option(o).Of(n) }

// Row returns the option's row of the table.
func (o BoolOption) Row() Option { return Option(o).of(Bool) }

// Of returns the option's value for a network.
func (o BoolOption) Of(n Network) bool { return Option(o).Of(n) == "true" }

// For returns the option's value for one endpoint: its own, or the network's.
func (o BoolOption) For(n Network, e Endpoint) bool {
	if v, ok := e.Options[o.Name]; ok {
		return v == "true"
	}
	return o.Of(n)
}

// Row returns the option's row of the table.
func (o IntOption) Row() Option { return Option(o).of(Int) }

// Of returns the option's value for a network.
func (o IntOption) Of(n Network) int {
	i, _ := strconv.Atoi(Option(o).Of(n)) // Resolve accepts only numbers
	return i
}

// Row returns the option's row of the table.
func (o EnumOption) Row() Option { return Option(o).of(Enum) }

// Of returns the option's value for a network.
func (o EnumOption) Of(n Network) string { return Option(o).Of(n) }

// Row returns the option's row of the table.
func (o LinkOption) Row() Option { return Option(o).of(IfName) }

// Of returns the option's value for a network.
func (o LinkOption) Of(n Network) string { return Option(o).Of(n) }

// Row returns the option's row of the table.
func (o AddrOption) Row() Option { return Option(o) }

// Of returns the option's value for a network; invalid: there is none.
func (o AddrOption) Of(n Network) netip.Addr {
	a, _ := netip.ParseAddr(Option(o).Of(n)) // Resolve accepts only addresses
	return a
}

// Row returns the option's row of the table.
func (o AddrsOption) Row() Option { return Option(o).of(Addrs) }

// Of returns the option's value for a network.
func (o AddrsOption) Of(n Network) []netip.Addr {
	return listOf(Option(o).Of(n), func(one string) (netip.Addr, bool) {
		a, err := netip.ParseAddr(one)
		return a, err == nil
	})
}

// Row returns the option's row of the table.
func (o RoutesOption) Row() Option { return Option(o).of(Routes) }

// Of returns the option's value for a network.
func (o RoutesOption) Of(n Network) []Route { return listOf(Option(o).Of(n), parseRoute) }

// Row returns the option's row of the table.
func (o PortsOption) Row() Option { return Option(o).of(Ports) }

// Of returns the option's value for a network.
func (o PortsOption) Of(n Network) []PortRange { return listOf(Option(o).Of(n), parsePorts) }

// Row returns the option's row of the table.
func (o LinksOption) Row() Option { return Option(o).of(IfNames) }

// Of returns the option's value for a network.
func (o LinksOption) Of(n Network) []string {
	return listOf(Option(o).Of(n), func(one string) (string, bool) { return one, one != "" })
}

// Row returns the option's row of the table.
func (o SourcesOption) Row() Option { return Option(o).of(Sources) }

// Of returns the option's value for a network. It leaves out a subnet inside another one, since the kernel's interval
// sets take no two that overlap.
func (o SourcesOption) Of(n Network) (subnets []netip.Prefix, interfaces []string) {
	for one := range strings.SplitSeq(Option(o).Of(n), ",") {
		if p, err := netip.ParsePrefix(one); err == nil {
			subnets = append(subnets, p)
		} else if one != "" && !slices.Contains(interfaces, one) {
			interfaces = append(interfaces, one)
		}
	}
	slices.SortStableFunc(subnets, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() }) // wide ones first
	var apart []netip.Prefix
	for _, p := range subnets {
		if !slices.ContainsFunc(apart, p.Overlaps) {
			apart = append(apart, p)
		}
	}
	return apart, interfaces
}

// Row returns the option's row of the table.
func (o RateOption) Row() Option { return Option(o).of(Rate) }

// listOf returns the valid items of a list with commas between them.
func listOf[T any](text string, parse func(string) (T, bool)) (all []T) {
	for one := range strings.SplitSeq(text, ",") {
		if item, ok := parse(one); ok {
			all = append(all, item)
		}
	}
	return all
}
