package engines

import (
	"maps"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
)

// TestOwner: policies see the labels of a container, and know when it has none; those for netyard are not taken unseen,
// since they may be the image's.
func TestOwner(t *testing.T) {
	for _, c := range []struct{ has, want map[string]string }{
		{nil, map[string]string{}},
		{map[string]string{"tier": "web", "netyard.alias": "db", "netyard.rate": "1gbit"}, map[string]string{"tier": "web"}},
	} {
		if got := owner(containers.Container{ID: "c1", Labels: c.has}).Labels; got == nil || !maps.Equal(got, c.want) {
			t.Errorf("of %v it has %#v, want %v", c.has, got, c.want)
		}
	}
}
