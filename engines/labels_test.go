package engines

import (
	"maps"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
)

// TestOwner shows that an owner has the labels of its container, for policies, but not those of netyard, which may come
// from the image, and that a container without labels has an empty map and not nil.
func TestOwner(t *testing.T) {
	for _, c := range []struct{ has, want map[string]string }{
		{nil, map[string]string{}},
		{map[string]string{"tier": "web", "netyard.alias": "db", "netyard.rate": "1gbit"}, map[string]string{"tier": "web"}},
	} {
		got := ownerOf(containers.Container{ID: "c1", Labels: c.has}).Labels
		if got == nil || !maps.Equal(got, c.want) {
			t.Errorf("owner of a container with labels %v has %#v, want %v", c.has, got, c.want)
		}
	}
}
