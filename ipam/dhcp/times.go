package dhcp

import "time"

// A State is how far the time of a lease has run (RFC 2131, figure 5).
type State string

// The states of a lease.
const (
	Bound     State = "bound"
	Renewing  State = "renewing"  // T1 has passed: its server is asked
	Rebinding State = "rebinding" // T2 has passed: every server is asked
	Expired   State = "expired"   // the address must not be used any more
)

// State is where a lease is at a moment.
func (l Lease) State(now time.Time) State {
	switch {
	case l.Expires.IsZero() || now.Before(l.Renew):
		return Bound
	case now.Before(l.Rebind):
		return Renewing
	case now.Before(l.Expires):
		return Rebinding
	}
	return Expired
}

const (
	// leastPause is RFC 2131's least time between two attempts, for leases that are long enough for it.
	leastPause = time.Minute
	// againPause is how often a client without an address looks for one.
	againPause = 10 * time.Second
)

// Due is when to ask for more time, having last asked in vain at tried (zero: not yet): half of what is left until the
// next state, but a minute at least (RFC 2131, 4.4.5), or an eighth of a short lease. Never is zero.
func (l Lease) Due(now, tried time.Time) time.Time {
	state := l.State(now)
	switch {
	case l.Expires.IsZero():
		return time.Time{}
	case state == Bound:
		return l.Renew
	case state == Expired:
		if tried.Before(l.Expires) {
			return l.Expires
		}
		return tried.Add(againPause)
	}
	began, next := l.Renew, l.Rebind
	if state == Rebinding {
		began, next = l.Rebind, l.Expires
	}
	if tried.Before(began) {
		return began
	}
	pause := max(next.Sub(tried)/2, min(leastPause, l.Expires.Sub(l.Start)/8))
	if due := tried.Add(pause); due.Before(next) {
		return due
	}
	return next
}

// Patience is how long an attempt at more time may take: until the next one is due, and no longer than a few seconds.
func (l Lease) Patience() time.Duration {
	const most = 5 * time.Second
	if l.Expires.IsZero() {
		return most
	}
	return min(most, max(l.Expires.Sub(l.Start)/8, firstWait))
}
