package table

import (
	"cmp"
	"slices"
	"strings"
	"unicode/utf8"
)

// A fit says how a column yields when the terminal is narrower than the table; see Column.
type fit struct{ drop, min int }

const gap = 2 // between columns, in characters

// layout returns the function that formats a line of cells. A width of 0 is no limit.
func layout(lines [][]string, fits []fit, width int) func([]string) string {
	widths := make([]int, len(fits))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	if width > 0 {
		widths = narrow(widths, fits, width)
	}
	return func(line []string) string {
		var b strings.Builder
		for i, cell := range line {
			if widths[i] > 0 {
				cell = cut(cell, widths[i])
				b.WriteString(cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+gap))
			}
		}
		return strings.TrimRight(b.String(), " ")
	}
}

// narrow makes the columns fit a width. It cuts those that may be cut; if that is not enough, it drops one column after
// the other, in the order of fit.drop; at last it cuts the remaining ones. A dropped column has width 0.
func narrow(widths []int, fits []fit, width int) []int {
	widths = slices.Clone(widths)
	for {
		over := lineLength(widths) - width
		spare := 0
		for i, f := range fits {
			if f.min > 0 {
				spare += max(0, widths[i]-f.min)
			}
		}
		if over <= spare {
			return shave(widths, over, func(i int) int { return cmp.Or(fits[i].min, widths[i]) })
		}
		next := -1
		for i, f := range fits {
			if f.drop > 0 && widths[i] > 0 && (next < 0 || f.drop < fits[next].drop) {
				next = i
			}
		}
		if next < 0 {
			return shave(widths, over, func(int) int { return 1 })
		}
		widths[next] = 0
	}
}

// lineLength returns the length of a line with these columns.
func lineLength(widths []int) int {
	n := -gap
	for _, w := range widths {
		if w > 0 {
			n += w + gap
		}
	}
	return n
}

// shave cuts columns by over characters in total, beginning with the last one, and none below its least width.
func shave(widths []int, over int, least func(i int) int) []int {
	for i := len(widths) - 1; i >= 0 && over > 0; i-- {
		n := min(over, max(0, widths[i]-least(i)))
		widths[i] -= n
		over -= n
	}
	return widths
}

// cut shortens s to a width and marks the cut.
func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}
