package etcd

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Server is one of etcd's members, as it answers at an endpoint of the configuration.
type Server struct {
	Endpoint string
	// Err is why it did not answer.
	Err     error
	Version string
	// HasLeader says whether it knows a leader.
	HasLeader bool
	Revision  int64
	// Size is the size of its database, and Quota the limit, in bytes. Servers before 3.6 do not report a quota; then
	// it is etcd's default.
	Size, Quota int64
}

// An Etcd is the health of etcd as a whole.
type Etcd struct {
	Servers []Server
	// Members is etcd's own count of its members; 0: the user is not allowed to ask.
	Members int
	Alarms  []string
	// Write is the median time of a write, and WriteErr why etcd refuses writes.
	Write    time.Duration
	WriteErr error
}

// Examine asks each of etcd's endpoints for its health. It leaves nothing written.
func (c *Client) Examine(ctx context.Context) (e Etcd, err error) {
	e.Servers = make([]Server, len(c.c.Endpoints))
	var all sync.WaitGroup
	for i, endpoint := range c.c.Endpoints { // in parallel: one that is away takes callTime
		all.Go(func() { e.Servers[i] = c.server(ctx, endpoint) })
	}
	all.Wait()
	if !slices.ContainsFunc(e.Servers, func(s Server) bool { return s.Err == nil }) {
		return e, nil // no server answers the rest
	}
	_ = c.call(ctx, "list etcd members", func(ctx context.Context, conn *clientv3.Client) error {
		members, err := conn.MemberList(ctx)
		if err == nil {
			e.Members = len(members.Members)
		}
		return err // a user without permission to ask is no error
	})
	_ = c.call(ctx, "list etcd alarms", func(ctx context.Context, conn *clientv3.Client) error {
		alarms, err := conn.AlarmList(ctx)
		if err == nil {
			for _, a := range alarms.Alarms {
				e.Alarms = append(e.Alarms, a.Alarm.String())
			}
		}
		return err
	})
	e.Write, err = c.timeWrite(ctx)
	if errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
		return e, err
	}
	e.WriteErr = err
	return e, nil
}

// TryWrite returns why etcd refuses writes; nil: it does not, as far as it answers.
func (c *Client) TryWrite(ctx context.Context) error {
	if _, err := c.write(ctx); err != nil && !errors.Is(err, ErrUnreachable) {
		return err
	}
	return nil
}

// server asks one endpoint.
func (c *Client) server(ctx context.Context, endpoint string) Server {
	s := Server{Endpoint: endpoint}
	bound, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	conn, err := c.dial(bound)
	if err != nil {
		s.Err = err
		return s
	}
	st, err := conn.Status(bound, endpoint)
	if err != nil {
		s.Err = err
		return s
	}
	s.Version, s.HasLeader, s.Revision = st.Version, st.Leader != 0, st.Header.Revision
	s.Size, s.Quota = st.DbSize, cmp.Or(st.DbSizeQuota, usualQuota)
	return s
}

// usualQuota is etcd's default quota, in bytes (DefaultQuotaBytes, server/storage/quota.go).
const usualQuota = 2 << 30

// timeWrite returns how long etcd takes for a write to disk.
func (c *Client) timeWrite(ctx context.Context) (time.Duration, error) {
	const times = 5
	var all []time.Duration
	for range times {
		took, err := c.write(ctx)
		if err != nil {
			return 0, err
		}
		all = append(all, took)
	}
	slices.Sort(all)
	return all[times/2], nil
}

// write grants and revokes a lease, which is written as a key is but leaves none, and returns how long that took.
func (c *Client) write(ctx context.Context) (took time.Duration, err error) {
	const ttl = 30 // seconds
	start := time.Now()
	err = c.call(ctx, "try a write to etcd", func(ctx context.Context, conn *clientv3.Client) error {
		lease, err := conn.Grant(ctx, ttl)
		if err != nil {
			return err
		}
		took = time.Since(start)
		_, err = conn.Revoke(ctx, lease.ID)
		return err
	})
	return took, err
}

const (
	slowWrite    = 100 * time.Millisecond
	fullDivisor  = 5    // a database is nearly full when less than a fifth of its quota is left
	farBehind    = 1000 // revisions
	expiryNotice = 14 * 24 * time.Hour
)

// Advise returns what an admin should do about etcd, one line each.
func (c Config) Advise(e Etcd, now time.Time) (all []string) {
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	var newest int64
	for _, s := range e.Servers {
		newest = max(newest, s.Revision)
	}
	for _, s := range e.Servers {
		switch {
		case s.Err != nil:
			add("%s does not answer: %v", s.Endpoint, s.Err)
			continue
		case !s.HasLeader:
			add("%s has no leader: most etcd members are down", s.Endpoint)
		case newest-s.Revision > farBehind:
			add("%s is %d revisions behind the others", s.Endpoint, newest-s.Revision)
		}
		if losesEvents(s.Version) {
			add("%s runs etcd %s, which may lose watch events; changes may be seen up to %s late; run 3.5.18 or later",
				s.Endpoint, s.Version, CompareEvery)
		}
		if s.Size > s.Quota-s.Quota/fullDivisor {
			add("%s uses %d of its quota of %d MiB, and refuses all writes when it is full; compact and defragment it",
				s.Endpoint, s.Size>>20, s.Quota>>20)
		}
	}
	if e.Members > len(e.Servers) {
		add("etcd has %d members, and etcd.endpoints lists %d: if those fail, this host cannot reach etcd; list all",
			e.Members, len(e.Servers))
	}
	if e.Members > 0 && e.Members%2 == 0 {
		add("etcd has %d members, which tolerate no more failures than %d would", e.Members, e.Members-1)
	}
	for _, a := range e.Alarms {
		add("etcd raised the alarm %s: %s", a, alarmAdvice(a))
	}
	if e.WriteErr != nil && !errors.Is(e.WriteErr, ErrFull) { // for which etcd raises an alarm
		add("etcd refuses writes: %v", e.WriteErr)
	}
	if e.Write > slowWrite {
		add("a write to etcd takes %s, so other hosts learn of a container that much later; give etcd a faster disk",
			e.Write.Round(time.Millisecond))
	}
	if !c.Insecure && c.Cert == "" && c.User == "" {
		add("etcd authenticates this host by neither certificate (etcd.cert) nor user (etcd.user): " +
			"whoever reaches etcd can redirect containers' traffic")
	}
	return append(all, c.expiring(now)...)
}

// alarmAdvice returns what an alarm of etcd's means and what to do.
func alarmAdvice(alarm string) string {
	switch alarm {
	case pb.AlarmType_NOSPACE.String():
		return ErrFull.Error()
	case pb.AlarmType_CORRUPT.String():
		return "the data of a member differs from the others'; replace that member"
	}
	return "it may refuse writes until the alarm is disarmed (etcdctl alarm disarm)"
}

// losesEvents says whether a watch of this version may lose events (CHANGELOG-3.4 and -3.5 of etcd: fixed in 3.4.36 and
// 3.5.18).
func losesEvents(version string) bool {
	var n [3]int
	for i, part := range strings.SplitN(version, ".", len(n)) {
		n[i], _ = strconv.Atoi(strings.SplitN(part, "-", 2)[0]) // an invalid number counts as 0
	}
	return slices.Compare(n[:], []int{3, 4, 36}) < 0 || n[1] == 5 && slices.Compare(n[:], []int{3, 5, 18}) < 0
}

// expiring returns advice about configured certificates that expire soon.
func (c Config) expiring(now time.Time) (all []string) {
	for key, file := range map[string]string{"etcd.ca": c.CA, "etcd.cert": c.Cert} {
		raw, err := os.ReadFile(file)
		if file == "" || err != nil { // connecting reports a file that cannot be read
			continue
		}
		for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil || cert.NotAfter.Sub(now) > expiryNotice {
				continue
			}
			all = append(all, fmt.Sprintf("%s: the certificate of %q in %s expires at %s; renew it",
				key, cert.Subject.CommonName, file, cert.NotAfter.Format(time.RFC3339)))
		}
	}
	slices.Sort(all)
	return all
}

// Advise examines etcd and returns what an admin should do about it.
func (c *Client) Advise(ctx context.Context) ([]string, error) {
	e, err := c.Examine(ctx)
	if err != nil {
		return nil, err
	}
	return c.c.Advise(e, time.Now()), nil
}
