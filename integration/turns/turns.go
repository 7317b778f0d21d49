// Package turns measures things side by side: in each round every side is measured once, one after the other, so that
// other load on the machine affects all alike. What counts is the ratio of two sides in the same round.
package turns

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// A Side is one of several things to measure in turn.
type Side struct {
	Name string
	// Measure does it once, and returns the value: a time, a rate.
	Measure func() float64
	// Times is how often a round measures it; the value of the round is the median. Short things are measured several
	// times, since whatever else runs for a moment would be the whole of a value.
	Times int
}

// value measures a side for one round.
func (s Side) value() float64 {
	var all []float64
	for range max(s.Times, 1) {
		all = append(all, s.Measure())
	}
	return quantile(all, 2)
}

// Timed is a side whose value is how many milliseconds do takes, the median of five times. After, which may be nil,
// cleans up.
func Timed(name string, do, after func()) Side {
	return Side{Name: name, Times: 5, Measure: func() float64 {
		took := Milliseconds(do)
		if after != nil {
			after()
		}
		return took
	}}
}

// Milliseconds returns how long do takes.
func Milliseconds(do func()) float64 {
	start := time.Now()
	do()
	return float64(time.Since(start)) / float64(time.Millisecond)
}

// Rounds are the values of each side, by its name, round by round.
type Rounds map[string][]float64

// Quick says that the figures need not be exact: it is only to be seen that everything is measured.
func Quick() bool { return os.Getenv("NETYARD_BENCH_QUICK") != "" }

// Scaled returns a number of rounds, or what else makes a measurement long: a tenth of it, but at least least, if the
// measurement is to be quick.
func Scaled(many, least int) int {
	if Quick() {
		return max(many/10, least)
	}
	return many
}

// Take measures all sides in each round, the first one last in every other round: none of them always follows the same
// one. One round before is not counted.
func Take(b *testing.B, rounds int, sides ...Side) Rounds {
	b.Helper()
	all := Rounds{}
	for i := range Scaled(rounds, 3) + 1 {
		order := slices.Clone(sides)
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range order {
			if v := s.value(); i > 0 {
				all[s.Name] = append(all[s.Name], v)
			}
		}
	}
	for name, values := range all {
		b.Logf("%s: %.4g", name, values)
	}
	b.ReportMetric(0, "ns/op") // the time of one iteration means nothing
	return all
}

// Beyond adds a side: what one side is beyond another, round by round.
func (r Rounds) Beyond(name, side, without string) {
	for i, v := range r[side] {
		r[name] = append(r[name], v-r[without][i])
	}
}

// Median returns the median of a side.
func (r Rounds) Median(side string) float64 { return quantile(r[side], 2) }

// A Row is a line of a table in docs/performance.md.
type Row struct {
	Table string // the table's name there
	What  string
	Unit  string // of the values
	// AtMost or AtLeast is the goal: of the ratio, or of the value if there is nothing beside it.
	AtMost, AtLeast float64
	// Inverse says that the ratio is the other side divided by netyard, and not netyard divided by the other side.
	Inverse bool
	// Beside describes what netyard is measured beside; empty: nothing.
	Beside string

	Ours, Theirs     float64 // medians
	Ratio, Low, High float64 // the median of the ratios, and what half of them are between
	Rounds           int
}

// Row reports a row about two sides: netyard, and what it is beside.
func (r Rounds) Row(b *testing.B, row Row, ours, theirs string) {
	b.Helper()
	var ratios []float64
	for i, v := range r[ours] {
		if row.Inverse {
			ratios = append(ratios, r[theirs][i]/v)
		} else {
			ratios = append(ratios, v/r[theirs][i])
		}
	}
	row.Ours, row.Theirs = r.Median(ours), r.Median(theirs)
	row.report(b, ratios)
}

// Report reports a row about values that have nothing beside them.
func (row Row) Report(b *testing.B, values ...float64) {
	b.Helper()
	row.Ours = quantile(values, 2)
	row.report(b, values)
}

func (row Row) report(b *testing.B, ratios []float64) {
	b.Helper()
	row.Low, row.Ratio, row.High = quantile(ratios, 1), quantile(ratios, 2), quantile(ratios, 3)
	row.Rounds = len(ratios)
	b.Log(row)
	path := os.Getenv("NETYARD_BENCH_RESULTS")
	if path == "" {
		return
	}
	raw, err := json.Marshal(row)
	if err != nil {
		b.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(append(raw, '\n')); err != nil {
		b.Fatal(err)
	}
}

// quantile returns a quartile of values: 1 is the lower one, 2 the median.
func quantile(of []float64, quarters int) float64 {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	return sorted[min(len(sorted)*quarters/4, len(sorted)-1)]
}

// Holds says whether the goal is reached. Half of the last digit that is printed is allowed for.
func (row Row) Holds() bool {
	const half = 0.005
	if row.AtMost > 0 {
		return row.Ratio <= row.AtMost+half
	}
	return row.Ratio >= row.AtLeast-half
}

// Goal returns the goal as text; empty if there is none.
func (row Row) Goal() string {
	switch {
	case row.AtMost > 0:
		return "≤ " + row.amount(row.AtMost)
	case row.AtLeast > 0:
		return "≥ " + row.amount(row.AtLeast)
	}
	return ""
}

// amount returns what the goal is about as text: a ratio, or a value with its unit.
func (row Row) amount(v float64) string {
	if row.Beside == "" {
		return number(v) + " " + row.Unit
	}
	return number(v)
}

// number returns a number with three digits that matter, but none behind the decimal point from a hundred.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (row Row) String() string { return line(row) }
