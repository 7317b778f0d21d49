// Package usage is about command lines: the order and number of arguments, the texts of help, and usage errors.
package usage

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"
)

// An Error reports a mistake on the command line.
type Error struct{ text string }

func (e Error) Error() string { return e.text }

// Errorf returns an Error that begins with the name of c's command.
func Errorf(c *cli.Context, format string, args ...any) error {
	where := ""
	if name, ok := strings.CutPrefix(c.Command.HelpName, c.App.HelpName+" "); ok {
		where = name + ": "
	}
	return Error{where + fmt.Sprintf(format, args...)}
}

// Describe returns the description of a command: text, which may be empty, and examples of its use.
func Describe(text string, examples ...string) string {
	return strings.TrimLeft(text+"\n\nExamples:\n\n  "+strings.Join(examples, "\n  "), "\n")
}

const (
	completionFlag = "--generate-bash-completion" // of urfave/cli
	helpWord       = "help"
)

// Arrange sorts the arguments into the order that urfave/cli needs: global flags, the command, its flags, its
// arguments. urfave/cli stops parsing flags at the first argument. Arrange also turns help COMMAND into
// COMMAND --help: urfave/cli's own help command does not know subcommands, and would show help where help is the name
// of a container.
func Arrange(app *cli.App, args []string) []string {
	if args[len(args)-1] == completionFlag {
		return args // the command line is not complete yet
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
			return slices.Concat(global, command, args[i:]) // unknown command: the rest cannot be interpreted
		default:
			rest = append(rest, a)
		}
	}
	return slices.Concat(global, command, help, rest)
}

// missingValue returns the arguments with a flag that lacks its value at the end: whatever followed the flag would
// become its value.
func missingValue(global, command []string, ofGlobal bool) []string {
	if ofGlobal {
		return global
	}
	return slices.Concat(global, command)
}

// flagOf returns the flag that an argument such as --name or --name=value sets, or nil.
func flagOf(flags []cli.Flag, arg string) cli.Flag {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

// takesNext reports whether the argument after arg is the value of flag f.
func takesNext(f cli.Flag, arg string) bool {
	v, ok := f.(cli.DocGenerationFlag)
	return ok && v.TakesValue() && !strings.Contains(arg, "=")
}

// commandOf returns the command of that name, or nil.
func commandOf(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// Prepare gives every command a usage line and a check of its arguments, and has it return errors where urfave/cli
// would print a help page or exit.
func Prepare(app *cli.App) {
	app.Action, app.OnUsageError = wantCommand, flagError
	app.ExitErrHandler = func(*cli.Context, error) {}
	prepare(app.Name, app.Commands)
}

// prepare prepares commands whose names begin with path.
func prepare(path string, commands []*cli.Command) {
	for _, c := range commands {
		name := path + " " + c.Name
		c.OnUsageError, c.HideHelpCommand = flagError, true
		for _, f := range c.Flags {
			if b, ok := f.(*cli.BoolFlag); ok {
				b.DisableDefaultText = true // always false
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

// More is the suffix of a word of ArgsUsage that stands for one or more arguments.
const More = "..."

// checkArgs checks the number of arguments: one for each word of ArgsUsage. Words in brackets are optional.
func checkArgs(c *cli.Context) error {
	words := strings.Fields(c.Command.ArgsUsage)
	least := slices.IndexFunc(append(slices.Clone(words), "["), func(w string) bool { return w[0] == '[' })
	switch n := c.NArg(); {
	case n < least:
		return Errorf(c, "%s is missing", words[n])
	case n > len(words) && !strings.HasSuffix(c.Command.ArgsUsage, More):
		return Errorf(c, "unexpected argument %q", c.Args().Get(len(words)))
	}
	return nil
}

// wantCommand is the action of a command that has subcommands. It runs when none of them was named.
func wantCommand(c *cli.Context) error {
	switch {
	case c.Args().Present():
		return Unknown(c, "command", c.Args().First(), visible(c.Command.Subcommands))
	case c.Command.HelpName == c.App.HelpName:
		return cli.ShowAppHelp(c)
	}
	return cli.ShowSubcommandHelp(c)
}

// flagError returns a one-line error where urfave/cli would print a help page.
func flagError(c *cli.Context, err error, _ bool) error {
	name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !ok {
		return Errorf(c, "%s", err)
	}
	var known []string
	for _, f := range append(slices.Clone(c.Command.Flags), c.App.Flags...) {
		for _, n := range f.Names() {
			known = append(known, dashed(n))
		}
	}
	return Unknown(c, "flag", dashed(name), known)
}

// Pairs parses the KEY=VALUE values of a flag that can be repeated.
func Pairs(c *cli.Context, flag string) (map[string]string, error) {
	all := map[string]string{}
	for _, text := range c.StringSlice(flag) {
		k, v, ok := strings.Cut(text, "=")
		if !ok || k == "" {
			return nil, Errorf(c, "--%s %s: not KEY=VALUE", flag, text)
		}
		if old, twice := all[k]; twice && old != v {
			return nil, Errorf(c, "--%s %s: %s already has the value %q", flag, text, k, old)
		}
		all[k] = v
	}
	return all, nil
}

// OnlyOne returns an error if more than one of the flags is set.
func OnlyOne(c *cli.Context, flags ...string) error {
	set := slices.DeleteFunc(flags, func(f string) bool { return !c.IsSet(f) })
	if len(set) > 1 {
		return Errorf(c, "--%s and --%s are mutually exclusive", set[0], set[1])
	}
	return nil
}

// dashed returns a flag as it is typed.
func dashed(flag string) string {
	if len(flag) == 1 {
		return "-" + flag
	}
	return "--" + flag
}

// Unknown returns the error for a word that is not known. It suggests the nearest known word.
func Unknown(c *cli.Context, kind, word string, known []string) error {
	if n := near(word, known); n != "" {
		return Errorf(c, "unknown %s %q; did you mean %s?", kind, word, n)
	}
	return Errorf(c, "unknown %s %q; see %s --help", kind, word, c.Command.HelpName)
}

// near returns the known word that a typing error most likely meant, or "" if none is close. It uses the measure of
// urfave/cli's own suggestions, which suggest something for every word.
func near(word string, known []string) string {
	const boost, prefix, alike = 0.7, 4, 0.8
	best, closest := "", alike
	for _, k := range known {
		likeness := smetrics.JaroWinkler(strings.TrimLeft(word, "-"), strings.TrimLeft(k, "-"), boost, prefix)
		if likeness >= closest {
			best, closest = k, likeness
		}
	}
	return best
}

// visible returns the names of the commands that help lists.
func visible(commands []*cli.Command) []string {
	names := []string{helpWord}
	for _, c := range commands {
		if !c.Hidden {
			names = append(names, c.Names()...)
		}
	}
	return names
}
