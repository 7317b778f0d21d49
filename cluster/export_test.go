package cluster

// WriteAlive writes a host's Alive record, as StayAlive does.
var WriteAlive = (*Client).writeAlive
