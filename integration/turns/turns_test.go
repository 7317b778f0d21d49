package turns

import (
	"slices"
	"strings"
	"testing"
)

// TestTake: all sides are measured in turn, their order changes, and the first round is not counted.
func TestTake(t *testing.T) {
	t.Setenv("NETYARD_BENCH_QUICK", "1")
	var order []string
	side := func(name string) Side {
		return Side{Name: name, Measure: func() float64 { order = append(order, name); return float64(len(order)) }}
	}
	var got Rounds
	testing.Benchmark(func(b *testing.B) {
		if got == nil { // once, whatever b.N is
			got = Take(b, 20, side("a"), side("b"))
		}
	})
	if s := strings.Join(order, ""); s != "abbaabba" {
		t.Errorf("order %s", s)
	}
	if !slices.Equal(got["a"], []float64{4, 5, 8}) || !slices.Equal(got["b"], []float64{3, 6, 7}) {
		t.Errorf("rounds %v", got)
	}
	got.Beyond("more", "a", "b")
	if !slices.Equal(got["more"], []float64{1, -1, 1}) {
		t.Errorf("beyond: %v", got["more"])
	}
}

// TestFill: each table of a page is replaced by its rows; the text around it stays; a table without rows, and rows
// without a table, are errors.
func TestFill(t *testing.T) {
	t.Parallel()
	const page = "text\n<!-- bench: one -->\nold\n<!-- /bench -->\nmore\n"
	rows, err := Read([]byte(`{"Table":"one","What":"old","Ours":1}
		{"Table":"one","What":"start","Unit":"ms","AtMost":1.3,"Beside":"bare","Ours":2.6,"Theirs":2,"Ratio":1.3049,
		"Low":1.2,"High":1.46,"Rounds":9}
		{"Table":"one","What":"old","Unit":"MB","AtLeast":150,"Ours":149,"Ratio":149,"Rounds":1}
		{"Table":"one","What":"rate","Unit":"/s","AtLeast":1.25,"Beside":"Docker","Ours":50000,"Theirs":41000,"Ratio":1.24,
		"Low":1.1,"High":1.3,"Rounds":9}`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Fill(page, rows)
	if err != nil {
		t.Fatal(err)
	}
	want := "text\n<!-- bench: one -->\n" + head +
		"| old | 149 MB |  |  |  | ≥ 150 MB | **no** |\n" +
		"| start | 2.60 ms | bare: 2.00 ms | 1.30 | 1.20–1.46 | ≤ 1.30 | yes |\n" +
		"| rate | 50000 /s | Docker: 41000 /s | 1.24 | 1.10–1.30 | ≥ 1.25 | **no** |\n" +
		"<!-- /bench -->\nmore\n"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if again, err := Fill(got, rows); err != nil || again != got {
		t.Errorf("a second time: %v\n%s", err, again)
	}
	for text, rows := range map[string][]Row{page: nil, "": rows} {
		if _, err := Fill(text, rows); err == nil {
			t.Errorf("%q with %d rows: no error", text, len(rows))
		}
	}
}
