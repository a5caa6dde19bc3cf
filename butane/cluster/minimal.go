package cluster

import _ "embed"

// Minimal is the starter that imagectl init writes: small, commented, valid.
//
//go:embed minimal.yaml
var Minimal []byte

// Schema is the JSON Schema of cluster.yaml, for editors. It knows shapes and names; Parse knows
// more. A test makes it.
//
//go:embed cluster.schema.json
var Schema []byte
