// Package pki signs certificates. The caller says what a certificate is for (a
// Profile); a certificate request contributes a public key and the proof that its
// sender holds the private one, and nothing else: not a name, not a usage, not a
// lifetime.
//
// Issuing has two steps. Prepare decides everything and can be refused, logged
// and recorded; Issue turns one prepared certificate into bytes, once, and is
// the only place that touches the CA's key.
//
// Time comes in as an argument, and so does randomness, which is used for serial
// numbers; since Go 1.26 the standard library makes keys and signatures from the
// system's generator whatever reader it is given.
package pki
