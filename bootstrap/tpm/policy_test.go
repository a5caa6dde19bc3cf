package tpm

import (
	"bytes"
	"strings"
	"testing"
)

func TestRegistersOutsideOfAPolicy(t *testing.T) {
	t.Parallel()
	values := make([][]byte, len(PCRIndexes()))
	for i := range values {
		values[i] = bytes.Repeat([]byte{byte(i)}, 32)
	}
	hexOf := func(b string) string { return strings.Repeat(b, 32) }
	for what, c := range map[string]struct {
		policy  PCRPolicy
		pcrs    [][]byte
		index   uint
		value   string
		outside bool
	}{
		"none":                    {nil, values, 0, "", false},
		"all as they should be":   {PCRPolicy{0: {hexOf("00")}, 7: {hexOf("ff"), hexOf("07")}, 14: {hexOf("0a")}}, values, 0, "", false},
		"one that is not":         {PCRPolicy{0: {hexOf("00")}, 7: {hexOf("ff")}}, values, 7, hexOf("07"), true},
		"the first of two":        {PCRPolicy{14: {hexOf("ff")}, 4: {hexOf("ff")}}, values, 4, hexOf("04"), true},
		"one that was not quoted": {PCRPolicy{14: {hexOf("0a")}}, values[:3], 14, "", true},
		"no value is allowed":     {PCRPolicy{7: nil}, values, 7, hexOf("07"), true},
	} {
		index, value, outside := c.policy.Outside(c.pcrs)
		if index != c.index || value != c.value || outside != c.outside {
			t.Errorf("%s: got %d, %s, %v", what, index, value, outside)
		}
	}
	for _, index := range PCRIndexes() {
		if Measures(index) == "" {
			t.Errorf("nothing is said about register %d", index)
		}
	}
}
