package beside

// Guards are the families netyard turned forwarding on for.
type Guards struct{ V4, V6 bool }
