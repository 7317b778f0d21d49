package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netyard/cni"
)

// TestDeletedConflists shows that a deleted configuration is reported with the commands that install it again or give
// it up, and no longer after either.
func TestDeletedConflists(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	install := func(name string) string {
		path, err := cni.New(name, "web", "id", "bridge", cni.DefaultSocket, nil).Install(dir)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	findings := func() (texts []string) {
		found, err := deletedConflists(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			texts = append(texts, f.Network+": "+f.Text)
		}
		return texts
	}
	web, other := install("web"), install(cni.DefaultNetwork)
	if got := findings(); len(got) > 0 {
		t.Errorf("nothing was deleted, but %q", got)
	}
	for _, path := range []string{web, other} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	all := strings.Join(findings(), "\n")
	for _, want := range []string{
		"web: ", filepath.Join(dir, "netyard-web.conflist"), "netyard cni install web,",
		"netyard cni install --default web,", "netyard cni uninstall web",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in %q", want, all)
		}
	}
	install("web")
	if got := findings(); len(got) != 1 {
		t.Errorf("after web was installed again: %q", got)
	}
	if _, err := cni.Uninstall(dir, "web"); err != nil {
		t.Fatal(err)
	}
	if got := findings(); len(got) > 0 {
		t.Errorf("after cni uninstall: %q", got)
	}
}
