package platform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"
)

// Web sends one request to a metadata service; what Client returns is one.
type Web interface {
	Do(*http.Request) (*http.Response, error)
}

// Client asks metadata services as they want it: at once, without a proxy, and where
// they send nobody further.
func Client() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       5 * time.Second,
	}
}

// service is the metadata service of a cloud. It is asked only in machines whose
// firmware names that cloud (SMBIOS): anywhere else its address is anybody's.
type service struct {
	name string
	// id is the file of /sys/class/dmi/id that names the cloud, with is.
	id, is string
	// path is where the user data is.
	path string
	// header is one that every request must have, and that Google's answers have too.
	header, value string
	// session: a token has to be fetched first (IMDSv2).
	session bool
	echoes  bool
}

const (
	dmi = "/sys/class/dmi/id/"
	// metadataURL is the same in every cloud.
	metadataURL = "http://169.254.169.254"
	// Of EC2's session tokens; the life is in seconds.
	sessionPath, sessionLife = "/latest/api/token", "60"
)

// services names them as cloud-init's ds-identify does; the requests are those of each
// provider's documentation of its metadata service.
func services() []service {
	return []service{
		{name: "Amazon EC2", id: "sys_vendor", is: "Amazon EC2", path: "/latest/user-data", session: true},
		{name: "Google Cloud", id: "product_name", is: "Google Compute Engine", path: "/computeMetadata/v1/instance/attributes/user-data", header: "Metadata-Flavor", value: "Google", echoes: true},
		{name: "Azure", id: "chassis_asset_tag", is: "7783-7084-3265-9085-8269-3286-77", path: "/metadata/instance/compute/userData?api-version=2021-01-01&format=text", header: "Metadata", value: "true"},
		{name: "Hetzner", id: "sys_vendor", is: "Hetzner", path: "/hetzner/v1/userdata"},
		{name: "DigitalOcean", id: "sys_vendor", is: "DigitalOcean", path: "/metadata/v1/user-data"},
		{name: "OpenStack", id: "product_name", is: "OpenStack Nova", path: "/openstack/latest/user_data"},
		{name: "OpenStack", id: "product_name", is: "OpenStack Compute", path: "/openstack/latest/user_data"},
	}
}

// cloud is the service of the cloud that the firmware names; nil for none.
func cloud(m Machine) (*service, error) {
	for _, s := range services() {
		b, err := m.ReadFile(dmi + s.id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(b)) == s.is {
			return &s, nil
		}
	}
	return nil, nil
}

// userData asks for what the machine was given when it was made.
func (s service) userData(ctx context.Context, web Web) ([]byte, error) {
	header, value := s.header, s.value
	if s.session {
		token, err := s.ask(ctx, web, http.MethodPut, sessionPath, "X-aws-ec2-metadata-token-ttl-seconds", sessionLife)
		if err == nil && len(token) == 0 {
			err = fmt.Errorf("%s%s gives no token", metadataURL, sessionPath)
		}
		if err != nil {
			return nil, fmt.Errorf("asking for a session: %w", err)
		}
		header, value = "X-aws-ec2-metadata-token", strings.TrimSpace(string(token))
	}
	b, err := s.ask(ctx, web, http.MethodGet, s.path, header, value)
	if err == nil && len(b) == 0 {
		err = errors.New("this machine has no user data")
	}
	return b, err
}

func (s service) ask(ctx context.Context, web Web, method, path, header, value string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, metadataURL+path, nil)
	if err != nil {
		return nil, err
	}
	if header != "" {
		r.Header.Set(header, value)
	}
	resp, err := web.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, nil
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s %s%s: %s", method, metadataURL, path, resp.Status)
	case s.echoes && resp.Header.Get(header) != value:
		return nil, fmt.Errorf("%s %s%s: the answer lacks %s: %s, so it is not that service's", method, metadataURL, path, header, value)
	}
	return io.ReadAll(io.LimitReader(resp.Body, Max+1))
}
