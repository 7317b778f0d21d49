package modetest

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"

	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/modes"
)

// Text writes an object as one line in the style of a router's configuration: its kind, its name, and then its fields.
func Text(o core.Object) string {
	switch o := o.(type) {
	case nft.Element:
		return fmt.Sprintf("element %s { %s }", o.Set, o.Text)
	case core.Sysctl:
		return o.String()
	}
	v := reflect.ValueOf(o)
	return strings.TrimRight(word(v.Type().Name())+" "+strings.Join(fields(v), " "), " ")
}

// word converts a name of the code to lower case with dashes: PeerNS becomes peer-ns.
func word(name string) string {
	return strings.ToLower(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(name, "$1-$2"))
}

// fields returns the set fields of a struct: the name first, without its label.
func fields(v reflect.Value) (words []string) {
	for i := range v.NumField() {
		name, f := word(v.Type().Field(i).Name), v.Field(i)
		switch {
		case !v.Type().Field(i).IsExported() || f.IsZero():
		case name == "name" || name == "link" && i == 0:
			words = append([]string{f.String()}, words...)
		case f.Kind() == reflect.Bool:
			words = append(words, name)
		default:
			words = append(words, name+" "+value(f))
		}
	}
	return words
}

// value writes the value of one field.
func value(f reflect.Value) string {
	if f.Kind() == reflect.Pointer {
		f = f.Elem()
	}
	switch one := f.Interface().(type) {
	case error:
		return fmt.Sprintf("%q", one)
	case core.Object:
		if name := reflect.ValueOf(one).FieldByName("Name"); name.IsValid() {
			return name.String()
		}
		return one.String()
	case fmt.Stringer:
		return one.String()
	}
	if f.Kind() == reflect.Struct {
		return "(" + strings.Join(fields(f), " ") + ")"
	}
	if f.Kind() != reflect.Slice {
		return fmt.Sprint(f.Interface())
	}
	var all []string
	for i := range f.Len() {
		all = append(all, value(f.Index(i)))
	}
	return strings.Join(all, ",")
}

// traits returns the traits that are set, one a line.
func traits(t modes.Traits) (lines []string) {
	v := reflect.ValueOf(t)
	for i := range v.NumField() {
		f := v.Field(i)
		name := word(v.Type().Field(i).Name)
		switch {
		case f.IsZero() && f.Kind() != reflect.Uint8:
		case f.Kind() == reflect.Bool:
			lines = append(lines, name)
		default:
			lines = append(lines, name+" "+value(f))
		}
	}
	return lines
}

// link returns what is to be done in the sandbox, one thing a line.
func link(l modes.Link) (lines []string) {
	if l.SrcName != "" {
		line := "move in " + l.SrcName + " as " + l.DstPrefix + "N"
		if l.DstName != "" {
			line = "move in " + l.SrcName + " as " + l.DstName
		}
		if l.MTU != 0 {
			line += fmt.Sprint(" mtu ", l.MTU)
		}
		lines = append(lines, line)
	}
	for _, gw := range l.Gateways {
		lines = append(lines, "route default via "+gw.String())
	}
	for _, r := range l.Routes {
		line := "route " + r.Dst.String()
		if r.Via.IsValid() {
			line += " via " + r.Via.String()
		}
		lines = append(lines, line)
	}
	if l.ToHost {
		lines = append(lines, "route to the host's own addresses")
	}
	return lines
}
