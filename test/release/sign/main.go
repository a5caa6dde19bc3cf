// Command sign plays Flatcar's build server for the test release: it makes a
// signing key of the same shape (a primary that only certifies, a signing
// subkey that has expired, a current one), and signs files the way Flatcar
// publishes them. Nothing in the product knows these keys.
//
//	sign keys DIR              make DIR's keys, unless they are there
//	sign files DIR FILE…       write FILE.sig, .DIGESTS, .DIGESTS.asc, .DIGESTS.sig
//	sign variants DIR FILE OUT write the signatures of FILE that tests want refused or accepted
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "sign: %v\n", err)
		os.Exit(1)
	}
}

// run dispatches one command line.
func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "keys":
		return makeKeys(args[1])
	case len(args) > 2 && args[0] == "files":
		key, err := readKey(releaseKey(args[1]))
		if err != nil {
			return err
		}
		for _, path := range args[2:] {
			if err := publish(path, key); err != nil {
				return fmt.Errorf("signing %s: %w", path, err)
			}
		}
		return nil
	case len(args) == 4 && args[0] == "variants":
		return writeVariants(args[1], args[2], args[3])
	}
	return fmt.Errorf("usage: sign keys DIR | sign files DIR FILE… | sign variants DIR FILE OUT")
}
