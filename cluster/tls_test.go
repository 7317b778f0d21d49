package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"netyard/cluster/clustertest"
)

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
func says(t *testing.T, c Config) error {
	t.Helper()
	cl, err := Open(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	_, err = cl.Enter(t.Context(), Meta{Port: 4789})
	return err
}

// refuses waits until a first call to etcd fails with this text: before, an etcd that is slow to answer is reported as
// unreachable.
func refuses(t *testing.T, c Config, what string) {
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
	good := Config{
		Endpoints: []string{e.URL}, CA: ca.file("ca.crt"), Cert: ca.file("host.crt"),
		Key: ca.file("host.key"),
	}
	must(t, eventually(func() error { return says(t, good) }))
	for what, c := range map[string]Config{
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
	c, err := Open(Config{
		Endpoints: good.Endpoints, CA: good.CA, Cert: rogue.file("host.crt"),
		Key: rogue.file("host.key"),
	})
	must(t, err)
	defer c.Close()
	if _, err := c.Enter(t.Context(), Meta{Port: 4789}); err == nil {
		t.Fatal("no error with another authority's certificate")
	}
	for _, f := range []string{"host.crt", "host.key"} {
		raw, err := os.ReadFile(ca.file(f))
		must(t, err)
		must(t, os.WriteFile(rogue.file(f), raw, 0o600))
	}
	clustertest.Eventually(t, "a renewed certificate is not used", func() bool {
		_, err := c.Enter(t.Context(), Meta{Port: 4789})
		return err == nil
	})
}

// TestUser: a user with a password can read its prefix and nothing else.
func TestUser(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	admin := client(t, e)
	conn, err := admin.dial(t.Context())
	must(t, err)
	must(t, eventually(func() error { _, err := admin.Enter(t.Context(), Meta{Port: 4789}); return err }))
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
	good := Config{Endpoints: []string{e.URL}, Insecure: true, User: "netyard", PasswordFile: secret, Prefix: "/blue"}
	must(t, eventually(func() error { return says(t, good) }))
	wrong := filepath.Join(t.TempDir(), "wrong")
	must(t, os.WriteFile(wrong, []byte("guess"), 0o600))
	for what, c := range map[string]Config{
		"permission denied":         {Endpoints: good.Endpoints, Insecure: true, User: "netyard", PasswordFile: secret, Prefix: "/green"},
		"authentication failed":     {Endpoints: good.Endpoints, Insecure: true, User: "netyard", PasswordFile: wrong, Prefix: "/blue"},
		"user name is empty":        {Endpoints: good.Endpoints, Insecure: true, Prefix: "/blue"},
		"no such file":              {Endpoints: good.Endpoints, Insecure: true, User: "netyard", PasswordFile: wrong + "x"},
		"so others can read it; ch": {Endpoints: good.Endpoints, Insecure: true, User: "netyard", PasswordFile: "/etc/passwd"},
	} {
		refuses(t, c, what)
	}

	// After a restart etcd no longer accepts the token; the client gets another one by itself.
	c, err := Open(good)
	must(t, err)
	defer c.Close()
	must(t, eventually(func() error { _, err := c.Enter(t.Context(), Meta{Port: 4789}); return err }))
	v := newView(t, c, "addr/")
	follow(t, v.Mirror)
	must(t, eventually(func() error { return c.Join(t.Context(), *hostOf(1)) }))
	net, m := joinBlue(t, c, 1)
	e.Kill(t)
	e.Run(t)
	hold(t, c, m, 0, 3)
	clustertest.Eventually(t, "the watch did not survive",
		func() bool { return v.Status().Records == 5 && net.ID != "" })
}

func TestConfig(t *testing.T) {
	t.Parallel()
	https := []string{"https://192.0.2.1:2379"}
	if err := (Config{}).Check(); err != nil || (Config{}).Enabled() {
		t.Errorf("the zero Config: %v", err)
	}
	if err := (Config{Endpoints: https}).Check(); err != nil {
		t.Error(err)
	}
	for what, c := range map[string]Config{
		"etcd.endpoints: is empty":                              {Prefix: "/x"},
		`etcd.endpoints: "192.0.2.1:2379" is not a URL`:         {Endpoints: []string{"192.0.2.1:2379"}},
		"does not use TLS; use https, or set insecure: true":    {Endpoints: []string{"http://192.0.2.1:2379"}},
		"mixes http and https":                                  {Endpoints: []string{https[0], "http://192.0.2.1:2379"}, Insecure: true},
		"etcd.cert and etcd.key need https endpoints":           {Endpoints: []string{"http://192.0.2.1:2379"}, Insecure: true, CA: "x"},
		"etcd.cert and etcd.key must be set together":           {Endpoints: https, Cert: "x"},
		"etcd.user and etcd.password_file must be set together": {Endpoints: https, User: "x"},
		`etcd.prefix: "netyard" is not a path`:                  {Endpoints: https, Prefix: "netyard"},
		`etcd.prefix: "/netyard/" is not a path such as /netya`: {Endpoints: https, Prefix: "/netyard/"},
	} {
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
}
