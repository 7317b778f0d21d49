package table

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"text/template"

	"github.com/urfave/cli/v2"

	"netyard/cli/usage"
)

// FormatFlag is the flag whose value is a template for each row.
const FormatFlag = "format"

// PrintJSON prints a value as indented JSON.
func PrintJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// ParseFormat parses --format. It returns nil if the flag is not set.
func ParseFormat(c *cli.Context) (*template.Template, error) {
	format := c.String(FormatFlag)
	switch {
	case format == "":
		return nil, nil //nolint:nilnil // no template is not an error
	case format == "json": // as with docker
		format = "{{json .}}"
	case strings.HasPrefix(format, "table "):
		return nil, usage.Errorf(c,
			"--format '%s': table templates are not supported; without --format there is a table", format)
	}
	functions := template.FuncMap{"json": compact, "join": strings.Join}
	t, err := template.New(FormatFlag).Funcs(functions).Parse(unescape(format))
	if err != nil {
		return nil, formatError(c, err)
	}
	return t, nil
}

// formatError returns an error of the template, without what text/template repeats.
func formatError(c *cli.Context, err error) error {
	text := strings.TrimPrefix(err.Error(), "template: "+FormatFlag+":")
	text = strings.Replace(text, `executing "`+FormatFlag+`" `, "", 1)
	return usage.Errorf(c, "--format '%s': %s", c.String(FormatFlag), text)
}

// compact is the template function json: v as one line.
func compact(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// unescape replaces \t and \n outside template actions: shells pass them on literally.
func unescape(format string) string {
	plain := strings.NewReplacer(`\t`, "\t", `\n`, "\n")
	var b strings.Builder
	for format != "" {
		text, rest, found := strings.Cut(format, "{{")
		b.WriteString(plain.Replace(text))
		if !found {
			break
		}
		action, rest, found := strings.Cut(rest, "}}")
		b.WriteString("{{" + action)
		if found {
			b.WriteString("}}")
		}
		format = rest
	}
	return b.String()
}

// printRows prints each row with a template, on lines of its own.
func printRows[R any](c *cli.Context, t *template.Template, rows []R) error {
	var b bytes.Buffer
	for _, r := range rows {
		if err := t.Execute(&b, r); err != nil {
			return formatError(c, err)
		}
		b.WriteByte('\n')
	}
	_, err := c.App.Writer.Write(b.Bytes())
	return err
}

// PrintOne prints a value with a template, or as JSON if there is none.
func PrintOne(c *cli.Context, t *template.Template, v any) error {
	if t == nil {
		return PrintJSON(c.App.Writer, v)
	}
	return printRows(c, t, []any{v})
}
