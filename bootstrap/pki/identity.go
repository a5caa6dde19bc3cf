package pki

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Kind says what holds a certificate.
type Kind string

// The kinds.
const (
	KindServer   Kind = "server"
	KindNode     Kind = "node"
	KindOperator Kind = "operator"
)

// Role is what an operator may do.
type Role string

// The roles.
const (
	RoleAdmin    Role = "admin"
	RoleOperator Role = "operator"
	RoleReader   Role = "reader"
	RoleBackup   Role = "backup"
)

const rolePrefix = "imagectl:"

// Roles returns every role that an operator can have.
func Roles() []Role { return []Role{RoleAdmin, RoleOperator, RoleReader, RoleBackup} }

// Identity is who a certificate says its holder is.
type Identity struct {
	Cluster string
	Kind    Kind
	Name    string
	// Role is set for operators only.
	Role Role
}

// URI is the identity as a URI SAN: imagectl://CLUSTER/KIND/NAME.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: "imagectl", Host: i.Cluster, Path: "/" + string(i.Kind) + "/" + i.Name}
}

func (i Identity) String() string { return i.URI().String() }

// IdentityOf reads the identity of a certificate whose chain to this cluster's
// CA has been verified already; it verifies nothing itself. A certificate of
// another cluster is an error.
func IdentityOf(c *x509.Certificate, cluster string) (Identity, error) {
	if len(c.URIs) != 1 {
		return Identity{}, fmt.Errorf("reading identity of %s: %d URI names, want 1", c.Subject, len(c.URIs))
	}
	u := c.URIs[0]
	kind, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	id := Identity{Cluster: u.Host, Kind: Kind(kind), Name: name}
	if !ok || u.Scheme != "imagectl" || strings.Contains(name, "/") || name == "" || id.URI().String() != u.String() {
		return Identity{}, fmt.Errorf("reading identity of %s: %s is not imagectl://CLUSTER/KIND/NAME", c.Subject, u)
	}
	if id.Cluster != cluster {
		return Identity{}, fmt.Errorf("reading identity of %s: it belongs to cluster %s, this is %s", c.Subject, id.Cluster, cluster)
	}
	switch id.Kind {
	case KindServer, KindNode:
	case KindOperator:
		if len(c.Subject.Organization) == 1 {
			id.Role = Role(strings.TrimPrefix(c.Subject.Organization[0], rolePrefix))
		}
		if !slices.Contains(Roles(), id.Role) || c.Subject.Organization[0] != rolePrefix+string(id.Role) {
			return Identity{}, fmt.Errorf("reading identity of %s: its organisation names no role", c.Subject)
		}
	default:
		return Identity{}, fmt.Errorf("reading identity of %s: there is no kind %q", c.Subject, kind)
	}
	return id, nil
}
