package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"strings"
)

// DefaultPrefix is the prefix of a cluster's keys in etcd unless the configuration sets another.
const DefaultPrefix = "/netyard/v1"

const maxPrefix = 128 // bytes

// Config says how to reach etcd. The zero Config means that there is no cluster.
type Config struct {
	// Endpoints are the URLs of etcd's members.
	Endpoints []string `yaml:"endpoints,omitempty"`
	// CA is the file with the certificates that etcd's certificate is verified by; empty: those the host trusts.
	CA string `yaml:"ca,omitempty"`
	// Cert and Key are the files with the certificate and key by which etcd authenticates this host. They are read
	// again for each connection, so they can be renewed in place.
	Cert string `yaml:"cert,omitempty"`
	Key  string `yaml:"key,omitempty"`
	User string `yaml:"user,omitempty"`
	// PasswordFile is the file with the user's password. The password itself is not part of the configuration, since
	// that is printed.
	PasswordFile string `yaml:"password_file,omitempty"`
	Prefix       string `yaml:"prefix,omitempty"`
	// Insecure allows endpoints without TLS. Whoever can modify packets on the way to etcd can then redirect
	// containers' traffic.
	Insecure bool `yaml:"insecure,omitempty"`
}

// Enabled says whether a cluster is configured.
func (c Config) Enabled() bool { return len(c.Endpoints) > 0 }

// Check refuses a configuration by which no cluster could be reached; the error names the configuration key.
func (c Config) Check() error {
	if !c.Enabled() {
		if c.CA+c.Cert+c.Key+c.User+c.PasswordFile+c.Prefix != "" || c.Insecure {
			return errors.New("etcd.endpoints: is empty, but other etcd keys are set; set it or remove them")
		}
		return nil
	}
	secure := 0
	for _, e := range c.Endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Host == "" || u.Path != "" || (u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Errorf("etcd.endpoints: %q is not a URL such as https://192.0.2.1:2379", e)
		}
		if u.Scheme == "https" {
			secure++
		} else if !c.Insecure {
			return fmt.Errorf("etcd.endpoints: %s does not use TLS; use https, or set insecure: true", e)
		}
	}
	if secure != 0 && secure != len(c.Endpoints) {
		return errors.New("etcd.endpoints: mixes http and https; use one of them")
	}
	if secure == 0 && c.CA+c.Cert+c.Key != "" {
		return errors.New("etcd.ca, etcd.cert and etcd.key need https endpoints")
	}
	if (c.Cert == "") != (c.Key == "") {
		return errors.New("etcd.cert and etcd.key must be set together")
	}
	if (c.User == "") != (c.PasswordFile == "") {
		return errors.New("etcd.user and etcd.password_file must be set together")
	}
	if p := c.Prefix; p != "" && (!strings.HasPrefix(p, "/") || path.Clean(p) != p || p == "/" || len(p) > maxPrefix) {
		return fmt.Errorf("etcd.prefix: %q is not a path such as %s", p, DefaultPrefix)
	}
	return nil
}

// tls returns the TLS configuration; nil for endpoints without TLS. It calls report when etcd's certificate is refused,
// since gRPC only says that there is no connection.
func (c Config) tls(report func(error)) (*tls.Config, error) {
	if !strings.HasPrefix(c.Endpoints[0], "https:") {
		return nil, nil //nolint:nilnil // none is an answer
	}
	t := &tls.Config{
		MinVersion: tls.VersionTLS12,
		// VerifyConnection verifies the certificate as crypto/tls would with RootCAs, but reads the roots each time, so
		// that they can be renewed in place.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			err := c.verify(s)
			if err != nil {
				report(err)
			}
			return err
		},
	}
	if c.Cert != "" {
		if _, err := c.keyPair(); err != nil { // otherwise it would fail only when etcd asks for it
			return nil, err
		}
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.keyPair() }
	}
	_, err := c.roots()
	return t, err
}

func (c Config) keyPair() (*tls.Certificate, error) {
	if err := checkPrivate("etcd.key", c.Key); err != nil {
		return nil, err
	}
	keyPair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("etcd.cert: %w", err)
	}
	return &keyPair, nil
}

// roots returns the configured CA certificates; nil, for those the host trusts, when none are configured.
func (c Config) roots() (*x509.CertPool, error) {
	if c.CA == "" {
		return nil, nil //nolint:nilnil // none is an answer
	}
	raw, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("etcd.ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("etcd.ca: %s contains no certificate", c.CA)
	}
	return pool, nil
}

// verify verifies etcd's certificate as crypto/tls does. A connection to an IP address has no server name
// (hostnameInSNI, crypto/tls): then the certificate must be valid for the address of one of the endpoints.
func (c Config) verify(s tls.ConnectionState) error {
	roots, err := c.roots()
	if err != nil {
		return err
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, cert := range s.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	names := []string{s.ServerName}
	if s.ServerName == "" {
		names = c.hosts()
	}
	for _, opts.DNSName = range names {
		if _, err = s.PeerCertificates[0].Verify(opts); err == nil {
			return nil
		}
	}
	return err
}

// hosts returns the hosts of the endpoints, without ports.
func (c Config) hosts() (all []string) {
	for _, e := range c.Endpoints {
		if u, err := url.Parse(e); err == nil {
			all = append(all, u.Hostname())
		}
	}
	return all
}

func (c Config) password() (string, error) {
	if c.PasswordFile == "" {
		return "", nil
	}
	if err := checkPrivate("etcd.password_file", c.PasswordFile); err != nil {
		return "", err
	}
	raw, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("etcd.password_file: %w", err)
	}
	return strings.TrimRight(string(raw), "\r\n"), nil
}

// checkPrivate refuses a file with a secret that other users can read.
func checkPrivate(key, file string) error {
	const others = 0o077
	st, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if st.Mode().Perm()&others != 0 {
		return fmt.Errorf("%s: %s has mode %04o, so others can read it; chmod 600", key, file, st.Mode().Perm())
	}
	return nil
}
