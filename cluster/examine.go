package cluster

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Server is one of etcd's members, as it answers at an endpoint of the configuration.
type Server struct {
	Endpoint string
	// Err is why it did not answer.
	Err     error
	Version string
	// Leads is whether it knows of a leader.
	Leads    bool
	Revision int64
	// Size is that of its file, and Quota what it may become, bytes; servers before 3.6 do not say a quota, and then it
	// is etcd's own default.
	Size, Quota int64
}

// An Etcd is what there is to know of the health of etcd as a whole.
type Etcd struct {
	Servers []Server
	// Members are etcd's own count of its members; 0: the user may not ask.
	Members int
	Alarms  []string
	// Write is the median time that a write took.
	Write time.Duration
}

// Examine asks each of etcd's endpoints how it is. It writes nothing that stays.
func (c *Client) Examine(ctx context.Context) (e Etcd, err error) {
	e.Servers = make([]Server, len(c.c.Endpoints))
	var all sync.WaitGroup
	for i, endpoint := range c.c.Endpoints { // those that are away take their time
		all.Go(func() { e.Servers[i] = c.server(ctx, endpoint) })
	}
	all.Wait()
	if !slices.ContainsFunc(e.Servers, func(s Server) bool { return s.Err == nil }) {
		return e, nil // there is nobody to ask for the rest
	}
	_ = c.call(ctx, "ask for etcd's members", func(ctx context.Context, conn *clientv3.Client) error {
		members, err := conn.MemberList(ctx)
		if err == nil {
			e.Members = len(members.Members)
		}
		return err // a user without the right to ask is no fault
	})
	_ = c.call(ctx, "ask for etcd's alarms", func(ctx context.Context, conn *clientv3.Client) error {
		alarms, err := conn.AlarmList(ctx)
		if err == nil {
			for _, a := range alarms.Alarms {
				e.Alarms = append(e.Alarms, a.Alarm.String())
			}
		}
		return err
	})
	e.Write, err = c.writes(ctx)
	return e, err
}

// server asks one.
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
	s.Version, s.Leads, s.Revision = st.Version, st.Leader != 0, st.Header.Revision
	s.Size, s.Quota = st.DbSize, cmp.Or(st.DbSizeQuota, usualQuota)
	return s
}

// usualQuota is that of an etcd that was told none, bytes (DefaultQuotaBytes, server/storage/quota.go).
const usualQuota = 2 << 30

// writes is how long etcd takes to have something on its disks: a lease is granted, which is written as a key is, and
// leaves none.
func (c *Client) writes(ctx context.Context) (time.Duration, error) {
	const times = 5
	var took []time.Duration
	for range times {
		start := time.Now()
		err := c.call(ctx, "time a write", func(ctx context.Context, conn *clientv3.Client) error {
			lease, err := conn.Grant(ctx, lifetime)
			if err != nil {
				return err
			}
			took = append(took, time.Since(start))
			_, err = conn.Revoke(ctx, lease.ID)
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	slices.Sort(took)
	return took[times/2], nil
}

const (
	slowWrite   = 100 * time.Millisecond
	fullDivisor = 5 // of the quota, one part is left
	farBehind   = 1000
	soon        = 14 * 24 * time.Hour
)

// Advise is what somebody ought to do about an etcd, in one line each.
func (c Config) Advise(e Etcd, now time.Time) (all []string) {
	say := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	var newest int64
	for _, s := range e.Servers {
		newest = max(newest, s.Revision)
	}
	for _, s := range e.Servers {
		switch {
		case s.Err != nil:
			say("%s does not answer: %v", s.Endpoint, s.Err)
			continue
		case !s.Leads:
			say("%s knows of no leader: most of etcd's members are away", s.Endpoint)
		case newest-s.Revision > farBehind:
			say("%s is %d revisions behind the others", s.Endpoint, newest-s.Revision)
		}
		if losesEvents(s.Version) {
			say("%s runs etcd %s, which may lose events of a watch; changes are then seen up to %s late. Run 3.5.18 or later", s.Endpoint, s.Version, compareEvery)
		}
		if s.Size > s.Quota-s.Quota/fullDivisor {
			say("%s has %d of the %d MiB that it may use; without room it refuses all writes. Have it compact and defragment", s.Endpoint, s.Size>>20, s.Quota>>20)
		}
	}
	if e.Members > len(e.Servers) {
		say("it has %d members, and etcd.endpoints names %d: if those fail, this host has none", e.Members, len(e.Servers))
	}
	if e.Members > 0 && e.Members%2 == 0 {
		say("it has %d members, which stand no more failures than %d", e.Members, e.Members-1)
	}
	for _, a := range e.Alarms {
		say("it raised the alarm %s, and may refuse writes until that is disarmed", a)
	}
	if e.Write > slowWrite {
		say("a write takes %s; the other hosts hear of a container that much later. Give it a faster disk", e.Write.Round(time.Millisecond))
	}
	if !c.Insecure && c.Cert == "" && c.User == "" {
		say("it knows this host by neither certificate (etcd.cert) nor user (etcd.user): whoever reaches it can send containers' traffic anywhere")
	}
	return append(all, c.expiring(now)...)
}

// losesEvents says of a version whether a watch may miss something (CHANGELOG-3.4 and -3.5 of etcd: 3.4.36, 3.5.18).
func losesEvents(version string) bool {
	var n [3]int
	for i, part := range strings.SplitN(version, ".", len(n)) {
		n[i], _ = strconv.Atoi(strings.SplitN(part, "-", 2)[0]) // a version that is none is an old one
	}
	return slices.Compare(n[:], []int{3, 4, 36}) < 0 || n[1] == 5 && slices.Compare(n[:], []int{3, 5, 18}) < 0
}

// expiring are certificates of the configuration that are about to end.
func (c Config) expiring(now time.Time) (all []string) {
	for key, file := range map[string]string{"etcd.ca": c.CA, "etcd.cert": c.Cert} {
		raw, err := os.ReadFile(file)
		if file == "" || err != nil { // the connection says so
			continue
		}
		for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil || cert.NotAfter.Sub(now) > soon {
				continue
			}
			all = append(all, fmt.Sprintf("%s: the certificate of %q in %s ends at %s", key, cert.Subject.CommonName, file, cert.NotAfter.Format(time.RFC3339)))
		}
	}
	slices.Sort(all)
	return all
}

// Advise is what somebody ought to do about the etcd of this Client.
func (c *Client) Advise(ctx context.Context) ([]string, error) {
	e, err := c.Examine(ctx)
	if err != nil {
		return nil, err
	}
	return c.c.Advise(e, time.Now()), nil
}
