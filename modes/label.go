package modes

import "strings"

// Labels of a container by which it asks for what an engine or CNI has no field for.
const (
	// LabelMAC is the MAC of the container's endpoint.
	LabelMAC = "netyard.mac"
	// LabelAlias lists further names of the container, with commas.
	LabelAlias = "netyard.alias"

	labelPrefix = "netyard."
)

// IsLabel reports whether a label is netyard's.
func IsLabel(label string) bool { return strings.HasPrefix(label, labelPrefix) }

// LabelOption returns the endpoint option that a label sets: rate for netyard.rate. ok: it sets one.
func LabelOption(label string) (option string, ok bool) {
	if label == LabelMAC || label == LabelAlias {
		return "", false
	}
	return strings.CutPrefix(label, labelPrefix)
}
