// Package api is the generated code of the wire contract between bootstrapd,
// the server and operators: see imagectl/v1/*.proto, which carry the prose. It
// holds no logic. "make generate" rewrites it.
package api
