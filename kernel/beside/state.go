package beside

// Restricted says for which families netyard turned forwarding on, and therefore restricts it to containers.
type Restricted struct{ V4, V6 bool }
