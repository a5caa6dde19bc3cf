package daemon

import (
	"net"
	"sync"
	"testing"
)

// An address is one test's until that ends, also while its server is not there yet: of hundreds
// that are asked for at once no two are the same, nor one that the kernel gives to others.
func TestAnAddressIsOneTestsAlone(t *testing.T) {
	t.Parallel()
	const most = 500
	var all sync.WaitGroup
	var mu sync.Mutex
	had := map[string]bool{}
	for range most {
		all.Go(func() {
			a := Address(t)
			mu.Lock()
			defer mu.Unlock()
			if had[a] {
				t.Errorf("%s is given twice", a)
			}
			had[a] = true
		})
	}
	all.Wait()
	for range most {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if a := l.Addr().String(); had[a] {
			t.Errorf("somebody else listens at %s", a)
		}
	}
	for a := range had {
		l, err := net.Listen("tcp", a)
		if err != nil {
			t.Errorf("its own server cannot listen: %v", err)
			continue
		}
		l.Close()
	}
}
