package cli

import (
	"runtime/debug"
	"testing"
)

func TestCommit(t *testing.T) {
	t.Parallel()
	for want, settings := range map[string][]debug.BuildSetting{
		"devel":              nil,
		"0123456789ab":       {{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "false"}},
		"0123456789ab-dirty": {{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "true"}},
	} {
		if got := commit(settings); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := buildVersion("v1"); got != "v1" {
		t.Errorf("the linker's version became %s", got)
	}
	if got := buildVersion(""); got == "" {
		t.Error("no version")
	}
}
