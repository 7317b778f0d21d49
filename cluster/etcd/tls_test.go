package etcd_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"netyard/cluster"
	"netyard/cluster/clustertest"
	"netyard/cluster/etcd"
	"netyard/cluster/hosttest"
	"netyard/cluster/mirror"
	"netyard/cluster/record"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// An authority signs certificates and writes them to files.
type authority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.sign(name, nil, true)
	a.write(name+".crt", "CERTIFICATE", a.cert.Raw, 0o644)
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) write(name, kind string, raw []byte, mode os.FileMode) {
	a.t.Helper()
	must(a.t, os.WriteFile(a.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), mode))
	must(a.t, os.Chmod(a.file(name), mode))
}

func (a *authority) sign(name string, signer *x509.Certificate, isCA bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(a.t, err)
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter:    time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: isCA,
	}
	if name == "elsewhere" {
		c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)}
	}
	parent, by := c, key
	if signer != nil {
		parent, by = signer, a.key
	}
	raw, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	must(a.t, err)
	c, err = x509.ParseCertificate(raw)
	must(a.t, err)
	return c, key
}

// issue writes name.crt and name.key.
func (a *authority) issue(name string) {
	a.t.Helper()
	cert, key := a.sign(name, a.cert, false)
	raw, err := x509.MarshalECPrivateKey(key)
	must(a.t, err)
	a.write(name+".crt", "CERTIFICATE", cert.Raw, 0o644)
	a.write(name+".key", "EC PRIVATE KEY", raw, 0o600)
}

// says returns the error of a first call to etcd.
func says(t *testing.T, c etcd.Config) error {
	t.Helper()
	cl, err := cluster.Open(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	_, err = cl.Enter(t.Context(), record.Meta{Port: 4789})
	return err
}

// refuses waits until a first call to etcd fails with this text: before, an etcd that is slow to answer is reported as
// unreachable.
func refuses(t *testing.T, c etcd.Config, what string) {
	t.Helper()
	var err error
	defer func() {
		if t.Failed() {
			t.Logf("%v, want %q", err, what)
		}
	}()
	clustertest.Eventually(t, "no error with "+what, func() bool {
		if err = says(t, c); err == nil {
			t.Fatalf("no error, want %q", what)
		}
		return strings.Contains(err.Error(), what)
	})
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the error has several lines: %v", err)
	}
}

// TestTLS: only a host with a certificate gets in, only an etcd with a certificate is trusted, and certificates can be
// renewed in place.
func TestTLS(t *testing.T) {
	t.Parallel()
	ca, rogue := newAuthority(t, "ca"), newAuthority(t, "rogue")
	for _, name := range []string{"server", "host", "elsewhere"} {
		ca.issue(name)
	}
	rogue.issue("host")
	serve := func(cert string) *clustertest.Etcd {
		return clustertest.Start(t, "https", "--cert-file", ca.file(cert+".crt"), "--key-file", ca.file(cert+".key"),
			"--client-cert-auth", "--trusted-ca-file", ca.file("ca.crt"))
	}
	e, far := serve("server"), serve("elsewhere")
	good := etcd.Config{
		Endpoints: []string{e.URL}, CA: ca.file("ca.crt"), Cert: ca.file("host.crt"),
		Key: ca.file("host.key"),
	}
	must(t, hosttest.Retry(func() error { return says(t, good) }))
	for what, c := range map[string]etcd.Config{
		"certificate signed by unknown authority": {Endpoints: []string{e.URL}, CA: rogue.file("rogue.crt"), Cert: good.Cert, Key: good.Key},
		"certificate is valid for 192.0.2.1":      {Endpoints: []string{far.URL}, CA: good.CA, Cert: good.Cert, Key: good.Key},
		"etcd is unreachable":                     {Endpoints: []string{e.URL}, CA: good.CA, Cert: rogue.file("host.crt"), Key: rogue.file("host.key")},
		// the host trusts other authorities
		"unknown authority":       {Endpoints: []string{e.URL}, Cert: good.Cert, Key: good.Key},
		"no such file":            {Endpoints: []string{e.URL}, CA: good.CA + "x", Cert: good.Cert, Key: good.Key},
		"contains no certificate": {Endpoints: []string{e.URL}, CA: good.Key, Cert: good.Cert, Key: good.Key},
	} {
		refuses(t, c, what)
	}
	must(t, os.Chmod(good.Key, 0o640))
	if err := says(t, good); err == nil || !strings.Contains(err.Error(), "others can read it") {
		t.Errorf("a key file that others can read: %v", err)
	}

	// The files are replaced in place: at first they hold a certificate of an authority that etcd does not trust.
	c, err := cluster.Open(etcd.Config{
		Endpoints: good.Endpoints, CA: good.CA, Cert: rogue.file("host.crt"),
		Key: rogue.file("host.key"),
	})
	must(t, err)
	defer c.Close()
	if _, err := c.Enter(t.Context(), record.Meta{Port: 4789}); err == nil {
		t.Fatal("no error with another authority's certificate")
	}
	for _, f := range []string{"host.crt", "host.key"} {
		raw, err := os.ReadFile(ca.file(f))
		must(t, err)
		must(t, os.WriteFile(rogue.file(f), raw, 0o600))
	}
	clustertest.Eventually(t, "a renewed certificate is not used", func() bool {
		_, err := c.Enter(t.Context(), record.Meta{Port: 4789})
		return err == nil
	})
}

// TestUser: a user with a password can read its prefix and nothing else.
func TestUser(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	admin := hosttest.Client(t, e)
	conn := hosttest.Raw(t, e.URL)
	hosttest.Enter(t, admin)
	for _, f := range []func() error{
		func() error { _, err := conn.RoleAdd(t.Context(), "netyard"); return err },
		func() error {
			_, err := conn.RoleGrantPermission(t.Context(), "netyard", "/blue/", clientv3.GetPrefixRangeEnd("/blue/"),
				clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := conn.UserAdd(t.Context(), "netyard", "secret"); return err },
		func() error { _, err := conn.UserGrantRole(t.Context(), "netyard", "netyard"); return err },
		func() error { _, err := conn.UserAdd(t.Context(), "root", "root"); return err },
		func() error { _, err := conn.UserGrantRole(t.Context(), "root", "root"); return err },
		func() error { _, err := conn.AuthEnable(t.Context()); return err },
	} {
		must(t, f())
	}
	secret := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(secret, []byte("secret\n"), 0o600))
	good := etcd.Config{
		Endpoints: []string{e.URL}, Insecure: true, User: "netyard", PasswordFile: secret, Prefix: "/blue",
	}
	must(t, hosttest.Retry(func() error { return says(t, good) }))
	wrong := filepath.Join(t.TempDir(), "wrong")
	must(t, os.WriteFile(wrong, []byte("guess"), 0o600))
	for what, c := range map[string]etcd.Config{
		"permission denied":         {Endpoints: good.Endpoints, Insecure: true, User: "netyard", PasswordFile: secret, Prefix: "/green"},
		"authentication failed":     {Endpoints: good.Endpoints, Insecure: true, User: "netyard", PasswordFile: wrong, Prefix: "/blue"},
		"user name is empty":        {Endpoints: good.Endpoints, Insecure: true, Prefix: "/blue"},
		"no such file":              {Endpoints: good.Endpoints, Insecure: true, User: "netyard", PasswordFile: wrong + "x"},
		"so others can read it; ch": {Endpoints: good.Endpoints, Insecure: true, User: "netyard", PasswordFile: "/etc/passwd"},
	} {
		refuses(t, c, what)
	}

	// After a restart etcd no longer accepts the token; the client gets another one by itself.
	c, err := cluster.Open(good)
	must(t, err)
	defer c.Close()
	hosttest.Enter(t, c)
	v := mirror.New(c.Client, slog.New(slog.DiscardHandler), "addr/", func([]record.Change) {})
	hosttest.Follow(t, v)
	must(t, hosttest.Retry(func() error { return c.Join(t.Context(), *hosttest.Host(1)) }))
	net, m := hosttest.JoinBlue(t, c, 1)
	e.Kill(t)
	e.Run(t)
	hosttest.Claim(t, c, m, 0, 3)
	clustertest.Eventually(t, "the watch did not survive",
		func() bool { return v.Status().Records == 5 && net.ID != "" })
}

// TestExamine: what a real etcd reports, with one endpoint that does not answer and a certificate that expires.
func TestExamine(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c, err := cluster.Open(etcd.Config{Endpoints: []string{e.URL, "http://127.0.0.1:1"}, Insecure: true})
	must(t, err)
	defer c.Close()
	hosttest.Enter(t, c)
	got, err := c.Examine(t.Context())
	must(t, err)
	s := got.Servers[0]
	if s.Err != nil || !strings.Contains(e.Version(t), `"etcdserver":"`+s.Version+`"`) || !s.HasLeader ||
		s.Revision < 2 || s.Size == 0 || s.Quota == 0 || got.Servers[1].Err == nil {
		t.Errorf("%+v", got)
	}
	if got.Members != 1 || len(got.Alarms) != 0 || got.Write == 0 {
		t.Errorf("%+v", got)
	}
	ca := newAuthority(t, "ca")
	ca.issue("host")
	host := etcd.Config{CA: ca.file("ca.crt"), Cert: ca.file("host.crt")}
	if all := host.Advise(etcd.Etcd{}, time.Now().AddDate(-1, 0, 0)); len(all) != 0 {
		t.Errorf("%q", all)
	}
	if all := host.Advise(etcd.Etcd{}, ca.cert.NotAfter); len(all) != 2 ||
		!strings.Contains(all[1], `etcd.cert: the certificate of "host"`) {
		t.Errorf("%q", all)
	}
	e.Kill(t)
	if all, err := c.Advise(t.Context()); err != nil || len(all) < 2 || !strings.Contains(all[0], "does not answer") {
		t.Errorf("%q, %v", all, err)
	}
}
