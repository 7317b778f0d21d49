package engines

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestBridgesOfDocker shows that the census has the bridge of each network of Docker's own driver, by the name that the
// user or Docker gave it, and of no other network.
func TestBridgesOfDocker(t *testing.T) {
	t.Parallel()
	networks := `[
{"Id":"0123456789abcdef","Name":"plain","Driver":"bridge"},
{"Id":"1123456789abcdef","Name":"bridge","Driver":"bridge","Options":{"com.docker.network.bridge.name":"docker0"}},
{"Id":"2123456789abcdef","Name":"web","Driver":"bridge","Options":{"com.docker.network.bridge.name":"web0"}},
{"Id":"3123456789abcdef","Name":"lan","Driver":"macvlan","Options":{"parent":"eth0"}},
{"Id":"4123456789abcdef","Name":"host","Driver":"host"},
{"Id":"5123","Name":"none","Driver":"null"}]`
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Api-Version", "1.41")
		if strings.HasSuffix(r.URL.Path, "/networks") {
			fmt.Fprint(w, networks)
		} else {
			fmt.Fprint(w, "[]")
		}
	}))
	sock := filepath.Join(t.TempDir(), "docker.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	c, err := NewDocker("unix://"+sock, slog.New(slog.DiscardHandler)).Census(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"br-0123456789ab", "docker0", "web0"}; !slices.Equal(c.Bridges, want) {
		t.Errorf("%q, want %q", c.Bridges, want)
	}
}
