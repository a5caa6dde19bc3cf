package cluster

import _ "embed"

// Minimal is the starter that imagectl init writes: small, commented, valid.
//
//go:embed minimal.yaml
var Minimal []byte
