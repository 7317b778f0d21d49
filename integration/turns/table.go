package turns

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// Read reads rows as they were reported. Of several that are about the same, the last one counts.
func Read(raw []byte) (rows []Row, err error) {
	at := map[string]int{}
	for d := json.NewDecoder(bytes.NewReader(raw)); d.More(); {
		var row Row
		if err := d.Decode(&row); err != nil {
			return nil, fmt.Errorf("read the results: %w", err)
		}
		key := row.Table + "\n" + row.What + "\n" + row.Beside
		if i, ok := at[key]; ok {
			rows[i] = row
			continue
		}
		at[key] = len(rows)
		rows = append(rows, row)
	}
	return rows, nil
}

const (
	head = "| what | netyard | beside | ratio | half of the rounds | goal | holds |\n|---|---|---|---|---|---|---|\n"
	yes  = "yes"
	no   = "**no**"
)

// Table returns a table in Markdown of the rows that belong to it.
func Table(name string, rows []Row) string {
	var text strings.Builder
	for _, row := range rows {
		if row.Table == name {
			text.WriteString(line(row) + "\n")
		}
	}
	if text.Len() == 0 {
		return ""
	}
	return head + text.String()
}

func line(row Row) string {
	ours, beside, ratio := number(row.Ours)+" "+row.Unit, "", ""
	if row.Beside != "" {
		beside = fmt.Sprintf("%s: %s %s", row.Beside, number(row.Theirs), row.Unit)
		ratio = number(row.Ratio)
	}
	spread, holds := "", ""
	if row.Rounds > 1 {
		spread = number(row.Low) + "–" + number(row.High)
	}
	if row.Goal() != "" {
		holds = map[bool]string{true: yes, false: no}[row.Holds()]
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s |", row.What, ours, beside, ratio, spread, row.Goal(), holds)
}

// places finds where a page has tables: between two comments, of which the first names the table.
var places = regexp.MustCompile(`(?s)(<!-- bench: (\S+) -->\n)(.*?)(<!-- /bench -->)`)

// Fill returns a page with all of its tables made from the rows. A table without rows is an error, and so are rows for
// which the page has no table.
func Fill(page string, rows []Row) (string, error) {
	left := map[string]bool{}
	for _, row := range rows {
		left[row.Table] = true
	}
	var err error
	page = places.ReplaceAllStringFunc(page, func(place string) string {
		m := places.FindStringSubmatch(place)
		table := Table(m[2], rows)
		if table == "" {
			err = fmt.Errorf("table %s: nothing was measured for it", m[2])
		}
		delete(left, m[2])
		return m[1] + table + m[4]
	})
	for name := range left {
		err = fmt.Errorf("table %s: the page has no place for it", name)
	}
	return page, err
}
