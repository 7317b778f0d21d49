package dhcp

import "time"

// A State is the state of a client with a lease (RFC 2131, figure 5).
type State string

// The states of a lease.
const (
	Bound     State = "bound"
	Renewing  State = "renewing"  // T1 has passed: the client asks its server to extend the lease
	Rebinding State = "rebinding" // T2 has passed: the client asks every server
	Expired   State = "expired"   // the address must no longer be used
)

// State returns the state of a lease at a time.
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
	// minInterval is the shortest time between two attempts (RFC 2131), for leases that are long enough.
	minInterval = time.Minute
	// acquireInterval is the time between two attempts of a client without an address.
	acquireInterval = 10 * time.Second
)

// NextAttempt returns the time of the next attempt to extend a lease, or zero if it never ends. tried is the time of
// the last attempt, which failed, or zero. The interval is half of the time until the next state, but at least a minute
// (RFC 2131, 4.4.5), or an eighth of a short lease.
func (l Lease) NextAttempt(now, tried time.Time) time.Time {
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
		return tried.Add(acquireInterval)
	}
	began, next := l.Renew, l.Rebind
	if state == Rebinding {
		began, next = l.Rebind, l.Expires
	}
	if tried.Before(began) {
		return began
	}
	interval := max(next.Sub(tried)/2, min(minInterval, l.Expires.Sub(l.Start)/8))
	if due := tried.Add(interval); due.Before(next) {
		return due
	}
	return next
}

// AttemptTimeout returns how long an attempt to extend a lease may take, so that it ends before the next one is due: an
// eighth of the lease, but at least firstWait and at most 5 s.
func (l Lease) AttemptTimeout() time.Duration {
	const most = 5 * time.Second
	if l.Expires.IsZero() {
		return most
	}
	return min(most, max(l.Expires.Sub(l.Start)/8, firstWait))
}
