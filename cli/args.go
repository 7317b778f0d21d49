package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"
)

// A usageError is a mistake in what was typed.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// usagef says what is wrong with how the command of c was called.
func usagef(c *cli.Context, format string, args ...any) error {
	where := ""
	if name, ok := strings.CutPrefix(c.Command.HelpName, c.App.HelpName+" "); ok {
		where = name + ": "
	}
	return usageError{where + fmt.Sprintf(format, args...)}
}

const (
	completionFlag = "--generate-bash-completion" // urfave's
	helpWord       = "help"
)

// arrange brings the arguments into the order that urfave wants, which stops looking for flags at the first argument:
// netyard's own flags, the command, its flags, its arguments. It turns help COMMAND into COMMAND --help; urfave's own
// help command knows nothing of commands of commands, and takes a container called help for itself.
func arrange(app *cli.App, args []string) []string {
	if args[len(args)-1] == completionFlag {
		return args // half a command line
	}
	global, command, rest := args[:1:1], []string(nil), []string(nil)
	flags, commands, help := app.Flags, app.Commands, []string(nil)
	for i := 1; i < len(args); i++ {
		a := args[i]
		sub := commandOf(commands, a)
		switch {
		case a == "--":
			return slices.Concat(global, command, help, []string{"--"}, rest, args[i+1:])
		case len(a) > 1 && a[0] == '-':
			to, f := &command, flagOf(flags, a)
			if f == nil {
				if f = flagOf(app.Flags, a); f != nil {
					to = &global
				}
			}
			*to = append(*to, a)
			if !takesNext(f, a) {
				continue
			}
			if i++; i == len(args) {
				return missingValue(global, command, to == &global)
			}
			*to = append(*to, args[i])
		case a == helpWord && len(commands) > 0:
			help = []string{"--help"}
		case sub != nil:
			command, flags, commands = append(command, a), sub.Flags, sub.Subcommands
		case len(commands) > 0:
			return slices.Concat(global, command, args[i:]) // no command of ours: what follows says nothing
		default:
			rest = append(rest, a)
		}
	}
	return slices.Concat(global, command, help, rest)
}

// missingValue lets nothing follow a flag that has no value, or that would become its value.
func missingValue(global, command []string, ofGlobal bool) []string {
	if ofGlobal {
		return global
	}
	return slices.Concat(global, command)
}

// flagOf finds the flag that an argument like --name or --name=value sets.
func flagOf(flags []cli.Flag, arg string) cli.Flag {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

// takesNext says whether the argument after arg is the value of its flag.
func takesNext(f cli.Flag, arg string) bool {
	v, ok := f.(cli.DocGenerationFlag)
	return ok && v.TakesValue() && !strings.Contains(arg, "=")
}

func commandOf(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// prepare gives every command what all of them have: a check of its arguments, and errors instead of pages of help.
func prepare(path string, commands []*cli.Command) {
	for _, c := range commands {
		name := path + " " + c.Name
		c.OnUsageError, c.HideHelpCommand = flagError, true
		for _, f := range c.Flags {
			if b, ok := f.(*cli.BoolFlag); ok {
				b.DisableDefaultText = true // it is always false
			}
		}
		if len(c.Subcommands) > 0 {
			c.Action, c.UsageText = wantCommand, name+" COMMAND"
			prepare(name, c.Subcommands)
			continue
		}
		c.UsageText = strings.TrimSpace(name + " [OPTIONS] " + c.ArgsUsage)
		action := c.Action
		c.Action = func(ctx *cli.Context) error {
			if err := checkArgs(ctx); err != nil {
				return err
			}
			return action(ctx)
		}
	}
}

// more ends a word of ArgsUsage that stands for one argument or more.
const more = "..."

// checkArgs counts arguments: one for each word of ArgsUsage, where those in brackets may be left out.
func checkArgs(c *cli.Context) error {
	words := strings.Fields(c.Command.ArgsUsage)
	least := slices.IndexFunc(append(slices.Clone(words), "["), func(w string) bool { return w[0] == '[' })
	switch n := c.NArg(); {
	case n < least:
		return usagef(c, "%s is missing", words[n])
	case n > len(words) && !strings.HasSuffix(c.Command.ArgsUsage, more):
		return usagef(c, "unexpected argument %q", c.Args().Get(len(words)))
	}
	return nil
}

// wantCommand is the action of what has commands: it is done when none of them was named.
func wantCommand(c *cli.Context) error {
	switch {
	case c.Args().Present():
		return unknown(c, "command", c.Args().First(), visible(c.Command.Subcommands))
	case c.Command.HelpName == c.App.HelpName:
		return cli.ShowAppHelp(c)
	}
	return cli.ShowSubcommandHelp(c)
}

// flagError says in a line what urfave would say with a page of help.
func flagError(c *cli.Context, err error, _ bool) error {
	name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !ok {
		return usagef(c, "%s", err)
	}
	var known []string
	for _, f := range append(slices.Clone(c.Command.Flags), c.App.Flags...) {
		for _, n := range f.Names() {
			known = append(known, dashed(n))
		}
	}
	return unknown(c, "flag", dashed(name), known)
}

// pairs reads the KEY=VALUEs of a flag that can be said more than once.
func pairs(c *cli.Context, flag string) (map[string]string, error) {
	all := map[string]string{}
	for _, text := range c.StringSlice(flag) {
		k, v, ok := strings.Cut(text, "=")
		if !ok || k == "" {
			return nil, usagef(c, "--%s %s: want KEY=VALUE", flag, text)
		}
		if old, twice := all[k]; twice && old != v {
			return nil, usagef(c, "--%s %s: %s is said twice", flag, text, k)
		}
		all[k] = v
	}
	return all, nil
}

func dashed(flag string) string {
	if len(flag) == 1 {
		return "-" + flag
	}
	return "--" + flag
}

func unknown(c *cli.Context, kind, word string, known []string) error {
	if n := near(word, known); n != "" {
		return usagef(c, "unknown %s %q; did you mean %s?", kind, word, n)
	}
	return usagef(c, "unknown %s %q; see %s --help", kind, word, c.Command.HelpName)
}

// near is the known word that a typing error most likely meant; empty when none is close. It measures as urfave's
// suggestions do, which have something to suggest for every word.
func near(word string, known []string) string {
	const boost, prefix, alike = 0.7, 4, 0.8
	best, closest := "", alike
	for _, k := range known {
		if d := smetrics.JaroWinkler(strings.TrimLeft(word, "-"), strings.TrimLeft(k, "-"), boost, prefix); d >= closest {
			best, closest = k, d
		}
	}
	return best
}

func visible(commands []*cli.Command) []string {
	names := []string{helpWord}
	for _, c := range commands {
		if !c.Hidden {
			names = append(names, c.Names()...)
		}
	}
	return names
}
