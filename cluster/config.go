package cluster

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

// DefaultPrefix is where in etcd a cluster is kept unless the configuration says otherwise.
const DefaultPrefix = "/netyard/v1"

// Config says how etcd is reached. The zero Config: there is no cluster.
type Config struct {
	// Endpoints are URLs of etcd's members.
	Endpoints []string `yaml:"endpoints,omitempty"`
	// CA has the certificates that etcd's are signed by; empty: those the host trusts.
	CA string `yaml:"ca,omitempty"`
	// Cert and Key are the host's own, by which etcd knows it. They are read anew for each connection, so they can be
	// renewed in place.
	Cert string `yaml:"cert,omitempty"`
	Key  string `yaml:"key,omitempty"`
	User string `yaml:"user,omitempty"`
	// PasswordFile has the user's password. It is in no configuration, since that is printed.
	PasswordFile string `yaml:"password_file,omitempty"`
	Prefix       string `yaml:"prefix,omitempty"`
	// Insecure allows endpoints without TLS: whoever can change a packet on the way can then send containers' traffic
	// anywhere.
	Insecure bool `yaml:"insecure,omitempty"`
}

// Enabled says whether there is a cluster at all.
func (c Config) Enabled() bool { return len(c.Endpoints) > 0 }

// Check refuses what no cluster could be reached by; the error names the key of the configuration.
func (c Config) Check() error {
	if !c.Enabled() {
		if c.CA+c.Cert+c.Key+c.User+c.PasswordFile+c.Prefix != "" || c.Insecure {
			return errors.New("etcd.endpoints: there are none, and other keys of etcd are set")
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
			return fmt.Errorf("etcd.endpoints: %s has no TLS; say https, or insecure: true", e)
		}
	}
	if secure != 0 && secure != len(c.Endpoints) {
		return errors.New("etcd.endpoints: some are https and some are not")
	}
	if secure == 0 && c.CA+c.Cert+c.Key != "" {
		return errors.New("etcd.ca, etcd.cert and etcd.key are for endpoints with https")
	}
	if (c.Cert == "") != (c.Key == "") {
		return errors.New("etcd.cert and etcd.key go together")
	}
	if (c.User == "") != (c.PasswordFile == "") {
		return errors.New("etcd.user and etcd.password_file go together")
	}
	if p := c.Prefix; p != "" && (!strings.HasPrefix(p, "/") || path.Clean(p) != p || p == "/" || len(p) > maxName) {
		return fmt.Errorf("etcd.prefix: %q is not a path such as %s", p, DefaultPrefix)
	}
	return nil
}

// tls is nil for endpoints without. Of a certificate that is not believed told hears: gRPC only says that there is no
// connection.
func (c Config) tls(told func(error)) (*tls.Config, error) {
	if !strings.HasPrefix(c.Endpoints[0], "https:") {
		return nil, nil //nolint:nilnil // none is an answer
	}
	t := &tls.Config{
		MinVersion: tls.VersionTLS12,
		// The certificate is verified, by the roots as they are at the moment: what crypto/tls does with RootCAs, which
		// it would keep.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			err := c.verify(s)
			if err != nil {
				told(err)
			}
			return err
		},
	}
	if c.Cert != "" {
		if _, err := c.pair(); err != nil { // or it would be known only once etcd refuses it
			return nil, err
		}
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.pair() }
	}
	_, err := c.roots()
	return t, err
}

func (c Config) pair() (*tls.Certificate, error) {
	if err := private("etcd.key", c.Key); err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("etcd.cert: %w", err)
	}
	return &pair, nil
}

// roots are nil, for those the host trusts, unless the configuration names some.
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
		return nil, fmt.Errorf("etcd.ca: %s has no certificate", c.CA)
	}
	return pool, nil
}

// verify is what crypto/tls does, for an etcd that is one of the endpoints. A connection to an address has no name of a
// server (hostnameInSNI, crypto/tls): then the certificate has to be for the address of one of them.
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

// hosts are those of the endpoints, without ports.
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
	if err := private("etcd.password_file", c.PasswordFile); err != nil {
		return "", err
	}
	raw, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("etcd.password_file: %w", err)
	}
	return strings.TrimRight(string(raw), "\r\n"), nil
}

// private refuses a secret that others can read.
func private(key, file string) error {
	const others = 0o077
	st, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if st.Mode().Perm()&others != 0 {
		return fmt.Errorf("%s: %s has mode %04o: others can read it; chmod 600", key, file, st.Mode().Perm())
	}
	return nil
}
