package engines

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"netyard/modes"
	"netyard/yard/reconcile"
)

type labels = map[string]string

// TestOwner shows that an owner has the labels of its container, for policies, apart from those of the image, and not
// those of netyard; that an image does not give it its name; and that without labels it has an empty map and not nil.
func TestOwner(t *testing.T) {
	for _, c := range []struct{ has, image, own, fromImage, options labels }{
		{nil, nil, labels{}, labels{}, labels{}},
		{
			labels{"tier": "web", "netyard.alias": "db", "netyard.rate": "1gbit"},
			labels{"netyard.rate": "1gbit"},
			labels{"tier": "web"},
			labels{},
			labels{"tier": "web", "netyard.alias": "db"},
		},
		{
			labels{"tier": "web", "role": "frontend", "nerdctl/name": "frontend"},
			labels{"tier": "app", "role": "frontend", "nerdctl/name": "frontend", "other": "x"},
			labels{"tier": "web"},
			labels{"role": "frontend", "nerdctl/name": "frontend"},
			labels{"tier": "web"},
		},
	} {
		got, options := ownerOf(containers.Container{ID: "c1", Labels: c.has}, c.image)
		has := []labels{got.Labels, got.ImageLabels, options}
		if d := cmp.Diff([]labels{c.own, c.fromImage, c.options}, has); d != "" {
			t.Errorf("owner of a container with labels %v, of the image %v:\n%s", c.has, c.image, d)
		}
		if got.Name != "c1" {
			t.Errorf("a container with the ID c1 is called %s", got.Name)
		}
	}
}

// TestDockerLabels shows that labels of Docker's containers are told apart from those of their images, and are unknown
// where the engine does not tell the image's.
func TestDockerLabels(t *testing.T) {
	asked := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked[path.Base(path.Dir(r.URL.Path))]++
		w.Header().Set("Content-Type", "application/json")
		if !strings.HasSuffix(r.URL.Path, "/images/known/json") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte(`{"Id": "known", "Config": {"Labels": {"role": "frontend", "tier": "app"}}}`))
	}))
	defer server.Close()
	c, err := client.New(client.WithHost("tcp://"+server.Listener.Addr().String()), client.WithAPIVersion("1.44"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	census := reconcile.Census{Endpoints: map[string]reconcile.SeenEndpoint{}}
	items := []container.Summary{
		{ID: "a", ImageID: "known", Labels: labels{"role": "frontend", "tier": "app"}},
		{ID: "b", ImageID: "known", Labels: labels{"role": "frontend", "tier": "web", "mine": "1"}},
		{ID: "c", ImageID: "gone", Labels: labels{"role": "frontend"}},
		{ID: "d", ImageID: "gone"},
	}
	for _, item := range items {
		census.Endpoints["of "+item.ID] = reconcile.SeenEndpoint{Container: modes.Container{ID: item.ID}}
	}
	(&Docker{Log: slog.New(slog.DiscardHandler)}).addLabels(t.Context(), c, census, items)
	want := map[string][]labels{
		"a": {{}, {"role": "frontend", "tier": "app"}},
		"b": {{"tier": "web", "mine": "1"}, {"role": "frontend"}},
		"c": {nil, nil},
		"d": {{}, {}},
	}
	for id, want := range want {
		got := census.Endpoints["of "+id].Container
		if d := cmp.Diff(want, []labels{got.Labels, got.ImageLabels}); d != "" {
			t.Errorf("container %s:\n%s", id, d)
		}
	}
	if asked["known"] != 1 {
		t.Errorf("asked for %v", asked)
	}
}
