package table

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNarrow(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		widths []int
		fits   []fit
		width  int
		want   []int
	}{
		{"fits", []int{4, 4}, []fit{{}, {drop: 1}}, 10, []int{4, 4}},
		{"drops the first column", []int{4, 4, 4}, []fit{{}, {drop: 2}, {drop: 1}}, 15, []int{4, 4, 0}},
		{"drops the next one", []int{4, 4, 4}, []fit{{}, {drop: 2}, {drop: 1}}, 9, []int{4, 0, 0}},
		{"cuts before it drops", []int{4, 4, 9}, []fit{{}, {drop: 1}, {min: 3}}, 15, []int{4, 4, 3}},
		{"drops what cutting cannot save", []int{4, 4, 9}, []fit{{}, {drop: 1}, {min: 3}}, 14, []int{4, 0, 8}},
		{"cuts columns that stay", []int{9, 9}, []fit{{}, {}}, 12, []int{9, 1}},
		{"cuts them further", []int{9, 9}, []fit{{}, {}}, 6, []int{3, 1}},
	} {
		if diff := cmp.Diff(c.want, narrow(c.widths, c.fits, c.width)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", c.name, diff)
		}
	}
}

func TestUnescape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{{.A}}\t{{.B}}\n`:      "{{.A}}\t{{.B}}\n",
		`{{join .A "\n"}}\t`:    `{{join .A "\n"}}` + "\t",
		`a\tb`:                  "a\tb",
		`a{{`:                   `a{{`,
		`a{{b\t`:                `a{{b\t`,
		`{{if .A}}\t{{end}}x}}`: "{{if .A}}\t{{end}}x}}",
	} {
		if got := unescape(in); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}
