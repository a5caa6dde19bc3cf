package serverapi

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/imagectl/imagectl/bootstrap/pki"
)

// How many refused calls the audit log takes: so many at once of each, and then one each time.
// Everybody without a certificate of this cluster is one caller: whoever has none cannot push
// a machine's refusals, or a person's, out of the log, nor make it longer than by a few entries
// an hour. A machine that was retired asks again for ever. A person may have a wish about as
// many machines refused as one transaction has room for.
const (
	strangersBurst, strangersEvery = 8, time.Hour
	machinesBurst, machinesEvery   = 8, time.Hour
	personsBurst, personsEvery     = 60, time.Minute
)

// refusals says which refused calls are in the audit log. The zero value is ready; it is safe
// for concurrent use. It knows as many callers as the CA has signed certificates for.
type refusals struct {
	mu sync.Mutex
	by map[pki.Identity]*refused
}

type refused struct {
	limit *rate.Limiter
	// left is how many were left out since the last that was not.
	left int
}

// take says whether there is room for a refusal, and how many of that caller were left out
// before it. The zero value of who is everybody without a certificate.
func (r *refusals) take(who pki.Identity, now time.Time) (room bool, before int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of, ok := r.by[who]
	if !ok {
		burst, every := strangersBurst, strangersEvery
		switch who.Kind {
		case pki.KindNode:
			burst, every = machinesBurst, machinesEvery
		case pki.KindOperator:
			burst, every = personsBurst, personsEvery
		}
		of = &refused{limit: rate.NewLimiter(rate.Every(every), burst)}
		if r.by == nil {
			r.by = map[pki.Identity]*refused{}
		}
		r.by[who] = of
	}
	if !of.limit.AllowN(now, 1) {
		of.left++
		return false, 0
	}
	before, of.left = of.left, 0
	return true, before
}
