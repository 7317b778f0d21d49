package etcd

import (
	"strings"
	"testing"
)

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
