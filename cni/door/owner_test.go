package door

import (
	"strings"
	"testing"

	"netyard/policy"
)

// TestOwners shows that a container is found by what its runtime tells of it: the name of a pod, with or without its
// namespace, of podman's container, of a job, and the container's ID; and that texts that are no names are not taken.
func TestOwners(t *testing.T) {
	id := func(digit string) string { return strings.Repeat(digit, 64) }
	d := newDesk(t)
	for _, c := range []struct {
		id, args string
		found    []string
		strange  []string
	}{
		{
			id("a"), "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=" + id("a"),
			[]string{"web-1", "shop/web-1", id("a"), id("a")[:12]},
			[]string{"shop", "web"},
		},
		{
			id("b"), "K8S_POD_NAME=db.0;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_UID=uid-4",
			[]string{"db.0", "shop/db.0", id("b")[:5]},
			[]string{"uid-4"},
		},
		{id("c"), "IgnoreUnknown=1;K8S_POD_NAME=c1", []string{"c1", id("c")}, []string{"/c1"}},
		{id("d"), "IgnoreUnknown=1;K8S_POD_NAME=c2;K8S_POD_NAMESPACE=c2", []string{"c2"}, []string{"c2/c2"}},
		{
			"0f2b1a3c-7d44-4c1c-9d0a-5b7a3a0f9a11",
			"IgnoreUnknown=true;NOMAD_NAMESPACE=default;NOMAD_JOB_ID=shop;NOMAD_GROUP_NAME=front",
			[]string{"shop.front", "default/shop.front", "0f2b1a3c"},
			[]string{"front"},
		},
		{"cnitool-77383ca0a0715733ca6f", "", []string{"cnitool-77383ca0a0715733ca6f", "cnitool-77"}, nil},
		{
			id("e"), "K8S_POD_NAME=\x1b[31mred;K8S_POD_NAMESPACE=shop",
			[]string{id("e")},
			[]string{"shop", "\x1b[31mred", "shop/\x1b[31mred"},
		},
		{id("f"), "K8S_POD_NAME=;K8S_POD_NAMESPACE=", []string{id("f")}, []string{"", "/"}},
	} {
		q := request("ADD", c.id, `{"cniVersion":"1.0.0","name":"net","type":"netyard","isGateway":true,`+
			`"ipam":{"type":"host-local","subnet":"10.10.0.0/16"}}`)
		q.Args = c.args
		d.attached(q)
		for _, ref := range c.found {
			if e, err := d.Yard.FindEndpointIn("net", ref); err != nil || e.Attachment != c.id {
				t.Errorf("%s: %q finds %q, %v", c.args, ref, e.Attachment, err)
			}
		}
		for _, ref := range c.strange {
			if e, err := d.Yard.FindEndpointIn("", ref); err == nil {
				t.Errorf("%s: %q finds %q", c.args, ref, e.Attachment)
			}
		}
	}
	// Policies select a pod by its name, with and without its namespace.
	e, err := d.Yard.FindEndpointIn("", "shop/web-1")
	if err != nil {
		t.Fatal(err)
	}
	for pattern, want := range map[string]bool{
		"web-1": true, "web-*": true, "shop/web-1": true, "shop/*": true, "other/*": false, "shop/web": false,
	} {
		p := policy.Policy{Select: policy.Selector{Container: pattern}}
		if has := p.Selected(policy.Endpoint{Endpoint: e}); has != want {
			t.Errorf("a policy for %s selects shop/web-1: %t", pattern, has)
		}
	}
}
