// Package backup writes the state of imagectl serve into one encrypted file and
// makes a state directory out of such a file, on a machine that knows nothing else.
//
// A backup is a tar archive, compressed by gzip, encrypted by age to the operators'
// recovery keys: `age -d -i KEY FILE | tar tz` lists it. It holds the records as they
// were at one moment, DHCP leases, and the identity that opens the secrets among the
// records; so whoever has a backup and a recovery key has the cluster's CAs. age tells
// a file that was cut or changed; the archive's last member says how much there was.
//
// Nothing is ever there in half: a backup gets its name, and a restored directory its
// place, after all of it was written and read back.
package backup
