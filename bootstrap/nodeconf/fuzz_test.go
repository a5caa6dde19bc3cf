package nodeconf

import (
	"reflect"
	"testing"
)

// A file is refused, or means what it means when it is written anew.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"cluster":"demo","mode":"installer","servers":["https://10.0.0.1:8443"],"ca":"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"}`))
	f.Add([]byte(`{"cluster":"demo","mode":"node","servers":["https://[fd00::1]:8443/"],"ca":"","token":"x"}{}`))
	f.Add([]byte(`{"mode":0}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		text, err := c.Encode()
		if err != nil {
			t.Fatalf("%q was read and cannot be written: %v", b, err)
		}
		if again, err := Parse(text); err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("%q becomes %q, %v", b, text, err)
		}
	})
}
