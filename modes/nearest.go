package modes

// Nearest is the known name that a typing error most likely meant; empty when none is close.
func Nearest(word string, known []string) string { return nearest(word, known) }
