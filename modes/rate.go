package modes

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strings"

	"netyard/kernel/bridge"
)

const (
	// minRate and maxRate are what a token bucket of the kernel can hold, with room to spare.
	minRate = 8_000
	maxRate = 1_000_000_000_000
	// Unlimited is the value of a Rate without a limit.
	Unlimited = "unlimited"
)

var rateForm = regexp.MustCompile(`^([0-9]{1,20}(?:\.[0-9]{1,20})?)([kmgt]i?)?(bit|bps)?$`)

// ParseRate reads a rate as tc(8) writes it: a number, k, m, g, t (of 1000) or ki, mi, gi, ti (of 1024), and bit, or
// bps for bytes per second. A number alone is in bits per second; 0 and "unlimited" are no limit.
func ParseRate(text string) (bridge.Rate, error) {
	lower := strings.ToLower(text)
	if lower == Unlimited {
		return 0, nil
	}
	parts := rateForm.FindStringSubmatch(lower)
	if parts == nil || parts[2] != "" && parts[3] == "" {
		return 0, fmt.Errorf("want a rate such as 10mbit, 1.5gbit or 500kbps (bytes), or unlimited")
	}
	v, _ := new(big.Rat).SetString(parts[1]) // the form lets only numbers in
	base := big.NewInt(1000)
	if strings.HasSuffix(parts[2], "i") {
		base.SetInt64(1024)
	}
	if parts[2] != "" {
		power := strings.Index("kmgt", parts[2][:1]) + 1
		v.Mul(v, new(big.Rat).SetInt(base.Exp(base, big.NewInt(int64(power)), nil)))
	}
	if parts[3] == "bps" {
		v.Mul(v, big.NewRat(8, 1))
	}
	f, _ := v.Float64()
	n := uint64(math.Min(math.Round(f), math.MaxInt64))
	if f != 0 && (n < minRate || n > maxRate) {
		return 0, fmt.Errorf("want a rate from %s to %s, or unlimited", bridge.Rate(minRate), bridge.Rate(maxRate))
	}
	return bridge.Rate(n), nil
}

// The rates of an endpoint, seen from its container. That of one direction overrides that of both.
var (
	// EgressRate limits what the container sends.
	EgressRate = RateOption{
		Name: "egress_rate", Endpoint: true, Set: true,
		Help: "limit of what each container sends, in the units of tc(8): 10mbit; overrides rate",
	}
	// IngressRate limits what the container receives.
	IngressRate = RateOption{
		Name: "ingress_rate", Endpoint: true, Set: true,
		Help: "limit of what each container receives, in the units of tc(8): 10mbit; overrides rate",
	}
	// BothRate limits each direction.
	BothRate = RateOption{
		Name: "rate", Endpoint: true, Set: true,
		Help: "limit of what each container sends and of what it receives, in the units of tc(8): 10mbit; " +
			"0 or unlimited removes a limit",
	}
)

// Limits returns the rates of an endpoint. What is given for the endpoint overrides what is given for its network.
func (n Network) Limits(e Endpoint) (ingress, egress bridge.Rate) {
	of := func(direction string) bridge.Rate {
		for _, said := range []map[string]string{e.Options, n.Now()} {
			for _, name := range []string{direction, BothRate.Name} {
				if v := said[name]; v != "" {
					r, _ := ParseRate(v) // Resolve let only rates in
					return r
				}
			}
		}
		return 0
	}
	return of(IngressRate.Name), of(EgressRate.Name)
}
