package platform

import (
	"encoding/xml"
	"errors"
	"fmt"
)

// environment is what an OVF environment document says to the machine itself (DMTF
// DSP0243, 9.1 and 9.2). Those of its neighbours are in Entity elements.
type environment struct {
	XMLName  xml.Name `xml:"http://schemas.dmtf.org/ovf/environment/1 Environment"`
	Sections []struct {
		Properties []struct {
			Key   string `xml:"http://schemas.dmtf.org/ovf/environment/1 key,attr"`
			Value string `xml:"http://schemas.dmtf.org/ovf/environment/1 value,attr"`
		} `xml:"Property"`
	} `xml:"PropertySection"`
}

// property returns the value of one property of ovf-env.xml.
func property(document []byte, key string) ([]byte, error) {
	var e environment
	if len(document) > Max {
		return nil, fmt.Errorf("it has more than %d bytes", Max)
	}
	if err := xml.Unmarshal(document, &e); err != nil {
		return nil, fmt.Errorf("it is no OVF environment: %w", err)
	}
	for _, s := range e.Sections {
		for _, p := range s.Properties {
			if p.Key != key {
				continue
			}
			// An OVA gives its properties an empty value.
			if p.Value == "" {
				return nil, fmt.Errorf("its property %s is empty", key)
			}
			return []byte(p.Value), nil
		}
	}
	return nil, errors.New("it has no property " + key)
}
