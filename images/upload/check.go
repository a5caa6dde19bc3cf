package upload

import "fmt"

// Compare is the check of a value on the platform against the one here.
func Compare(name, there, here string) Check {
	if there != here {
		return Check{Name: name, Result: Bad, Detail: fmt.Sprintf("it is %q there and %q here", there, here)}
	}
	return Check{Name: name, Result: Good, Detail: there}
}
