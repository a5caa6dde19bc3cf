package cluster

import (
	"net"
	"net/netip"
	"reflect"
	"time"
)

// The raw types are the shape of the file: everything optional, every value with
// its place. docs/cluster-yaml.md says what each key means.

type (
	rawString = field[string]
	rawInt    = field[int]
	rawBool   = field[bool]
	rawAddr   = field[netip.Addr]
	rawPrefix = field[netip.Prefix]
	rawMAC    = field[net.HardwareAddr]
	rawSize   = field[byteSize]

	rawDuration = field[time.Duration]
)

type rawFile struct {
	place
	Version    rawInt        `key:"version,required"`
	Extends    rawString     `key:"extends"`
	Cluster    rawString     `key:"cluster,required"`
	Flatcar    rawFlatcar    `key:"flatcar,required"`
	Kubernetes rawKubernetes `key:"kubernetes,required"`
	Etcd       rawEtcd       `key:"etcd,required"`
	CNI        rawComponent  `key:"cni,required"`
	Agent      rawAgent      `key:"agent,required"`
	Server     rawServer     `key:"server,required"`
	Boot       rawBoot       `key:"boot,required"`
	Machines   []rawMachine  `key:"machines"`
	Roles      dict[rawRole] `key:"roles,required"`
	Network    rawNetwork    `key:"network"`
	Addons     []rawNamed    `key:"addons"`
	Backup     rawBackup     `key:"backup"`
	Identity   rawIdentity   `key:"identity"`
	Policy     rawPolicy     `key:"policy"`
	Operators  []rawOperator `key:"operators,later"`
	Upload     []rawUpload   `key:"upload"`
}

type rawFlatcar struct {
	place
	Channel    rawString   `key:"channel"`
	Version    rawString   `key:"version,required"`
	Arch       rawString   `key:"arch"`
	Mirror     rawString   `key:"mirror"`
	Mirrors    []rawString `key:"mirrors"`
	Keyring    rawString   `key:"keyring,required"`
	PrimaryKey rawString   `key:"primaryKey"`
	Signature  rawString   `key:"signature"`
	SBOM       rawBool     `key:"sbom"`
}

type rawKubernetes struct {
	place
	Version     rawString      `key:"version,required"`
	Endpoint    rawString      `key:"endpoint"`
	APIVIP      []rawAddr      `key:"apiVIP"`
	PodCIDR     rawPrefix      `key:"podCIDR"`
	ServiceCIDR rawPrefix      `key:"serviceCIDR"`
	DNSDomain   rawString      `key:"dnsDomain"`
	SANs        []rawString    `key:"sans"`
	CAKey       rawString      `key:"caKey"`
	PodSecurity rawPodSecurity `key:"podSecurity"`
	Binaries    rawString      `key:"binaries"`
	Images      []rawNamed     `key:"images"`
}

type rawPodSecurity struct {
	place
	Enforce rawString   `key:"enforce"`
	Audit   rawString   `key:"audit"`
	Warn    rawString   `key:"warn"`
	Exempt  []rawString `key:"exempt"`
}

// rawComponent is a version and a source.
type rawComponent struct {
	place
	Version rawString `key:"version,required"`
	Source  rawString `key:"source"`
}

type rawEtcd struct {
	place
	Version           rawString   `key:"version,required"`
	Source            rawString   `key:"source"`
	HeartbeatInterval rawDuration `key:"heartbeatInterval"`
	ElectionTimeout   rawDuration `key:"electionTimeout"`
}

type rawAgent struct {
	place
	Source rawString `key:"source,required"`
}

type rawServer struct {
	place
	Address   rawAddr     `key:"address,required"`
	Peers     []rawAddr   `key:"peers"`
	HTTPPort  rawInt      `key:"httpPort"`
	HTTPSPort rawInt      `key:"httpsPort"`
	Artefacts rawString   `key:"artefacts"`
	SANs      []rawString `key:"sans"`
}

type rawBoot struct {
	place
	Interface     rawString      `key:"interface"`
	DHCP          rawString      `key:"dhcp"`
	Unknown       rawString      `key:"unknown"`
	Subnets       []rawSubnet    `key:"subnets"`
	Relays        []rawAddr      `key:"relays"`
	Neighbours    []rawNeighbour `key:"neighbours"`
	DHCP6         rawDHCP6       `key:"dhcp6"`
	Syslog        rawBool        `key:"syslog"`
	NBP           rawString      `key:"nbp"`
	IPXE          rawIPXE        `key:"ipxe"`
	GRUB          rawGRUB        `key:"grub"`
	ISO           rawISO         `key:"iso"`
	SecureBoot    rawSecureBoot  `key:"secureBoot"`
	InstallerArgs []rawString    `key:"installerArgs"`
}

type rawNeighbour struct {
	place
	Address  rawAddr  `key:"address,required"`
	Machines []rawMAC `key:"machines"`
}

type rawSubnet struct {
	place
	CIDR      rawPrefix   `key:"cidr,required"`
	Interface rawString   `key:"interface"`
	Range     rawRange    `key:"range"`
	Router    rawAddr     `key:"router"`
	DNS       []rawAddr   `key:"dns"`
	NTP       []rawAddr   `key:"ntp"`
	Domain    rawString   `key:"domain"`
	MTU       rawInt      `key:"mtu"`
	Routes    []rawVia    `key:"routes"`
	Lease     rawDuration `key:"lease"`
}

type rawVia struct {
	place
	To  rawPrefix `key:"to,required"`
	Via rawAddr   `key:"via,required"`
}

type rawDHCP6 struct {
	place
	Mode        rawString    `key:"mode"`
	Address     rawAddr      `key:"address,required"`
	Peers       []rawAddr    `key:"peers"`
	RapidCommit rawBool      `key:"rapidCommit"`
	Subnets     []rawSubnet6 `key:"subnets"`
}

type rawSubnet6 struct {
	place
	CIDR   rawPrefix   `key:"cidr,required"`
	Range  rawRange    `key:"range"`
	DNS    []rawAddr   `key:"dns"`
	Domain rawString   `key:"domain"`
	Lease  rawDuration `key:"lease"`
}

type rawRange struct {
	place
	First rawAddr `key:"first,required"`
	Last  rawAddr `key:"last,required"`
}

type rawIPXE struct {
	place
	BIOS  rawString `key:"bios"`
	UEFI  rawString `key:"uefi"`
	Arm64 rawString `key:"arm64"`
}

type rawGRUB struct {
	place
	Shim rawString `key:"shim,required"`
	GRUB rawString `key:"grub,required"`
}

type rawISO struct {
	place
	Stub     rawString `key:"stub,required"`
	ISOLINUX rawString `key:"isolinux"`
	LDLINUX  rawString `key:"ldlinux"`
	MBR      rawString `key:"mbr"`
}

type rawSecureBoot struct {
	place
	Certificate rawString `key:"certificate,required"`
	Key         rawSecret `key:"key,required"`
	PIN         rawSecret `key:"pin"`
}

type rawMachine struct {
	place
	Name          rawString       `key:"name,required"`
	Role          rawString       `key:"role,required"`
	Zone          rawString       `key:"zone"`
	Match         rawMatch        `key:"match,required"`
	Address       rawAddr         `key:"address"`
	Disk          rawDisk         `key:"disk"`
	Diskless      rawBool         `key:"diskless"`
	Labels        dict[rawString] `key:"labels"`
	TPM           rawTPM          `key:"tpm"`
	BMC           rawBMC          `key:"bmc"`
	Firmware      rawFirmware     `key:"firmware"`
	Network       rawNetwork      `key:"network"`
	InstallerArgs []rawString     `key:"installerArgs"`
}

type rawMatch struct {
	place
	MAC      []rawMAC    `key:"mac"`
	UUID     rawString   `key:"uuid"`
	Serial   rawString   `key:"serial"`
	Selector rawSelector `key:"selector"`
}

type rawSelector struct {
	place
	MAC       []rawString `key:"mac"`
	UUID      []rawString `key:"uuid"`
	Serial    []rawString `key:"serial"`
	Network   []rawString `key:"network"`
	CircuitID []rawString `key:"circuitID"`
	RemoteID  []rawString `key:"remoteID"`
}

type rawTPM struct {
	place
	EK rawString `key:"ek,required"`
}

type rawDisk struct {
	place
	Path    rawString `key:"path"`
	Serial  rawString `key:"serial"`
	WWN     rawString `key:"wwn"`
	Model   rawString `key:"model"`
	MinSize rawSize   `key:"minSize"`
	MaxSize rawSize   `key:"maxSize"`
}

type rawBMC struct {
	place
	Kind     rawString `key:"kind,required"`
	Address  rawString `key:"address,required"`
	Username rawString `key:"username,required"`
	Password rawSecret `key:"password,required"`
	TLS      rawBMCTLS `key:"tls"`
	System   rawString `key:"system"`
	Boot     rawString `key:"boot"`
	Firmware rawString `key:"firmware"`
}

type rawBMCTLS struct {
	place
	Pin      rawString `key:"pin"`
	CA       rawString `key:"ca"`
	Insecure rawString `key:"insecure"`
}

// rawSecret says where a secret is; a secret itself is never in cluster.yaml.
type rawSecret struct {
	place
	File rawString `key:"file"`
	Env  rawString `key:"env"`
	Age  rawString `key:"age"`
}

// decodeNode refuses a secret that is written out, in words of its own.
func (s *rawSecret) decodeNode(d *decoder, n *node, path string) {
	const hint = "file: a path outside git, env: the name of a variable, or age: an encrypted file"
	if n.kind == scalarKind && n.tag != "!!null" {
		s.place = place{Pos: n.pos, Path: path} // it is there, if not as it should be
		d.add(n.pos, path, hint, "a secret is never written here, only where it is: one of file, env, age")
		return
	}
	type plain rawSecret
	d.value(n, path, reflect.ValueOf((*plain)(s)).Elem())
	set := 0
	for _, f := range []rawString{s.File, s.Env, s.Age} {
		if f.Set {
			set++
		}
	}
	if n.kind == mappingKind && set != 1 && !d.reported(path) {
		d.add(n.pos, path, hint, "want exactly one of file, env, age")
	}
}

type rawFirmware struct {
	place
	LocalBoot rawString   `key:"localBoot"`
	Quirks    []rawString `key:"quirks"`
	NBP       rawString   `key:"nbp"`
}

type rawRole struct {
	place
	Kind       rawString       `key:"kind,required"`
	Butane     []rawString     `key:"butane"`
	Extensions []rawExtension  `key:"extensions"`
	KernelArgs []rawString     `key:"kernelArgs"`
	Labels     dict[rawString] `key:"labels"`
	Taints     []rawString     `key:"taints"`
	Network    rawNetwork      `key:"network"`
}

// rawExtension is ready-made by its source, or made by a recipe from inputs.
type rawExtension struct {
	place
	Name   rawString       `key:"name,required"`
	Source rawString       `key:"source"`
	Recipe rawString       `key:"recipe"`
	Inputs dict[rawString] `key:"inputs"`
}

// rawNamed is something with a name and a source.
type rawNamed struct {
	place
	Name   rawString `key:"name,required"`
	Source rawString `key:"source,required"`
}

// rawNetwork is the network of the nodes: of all, of a role's or of one.
type rawNetwork struct {
	place
	Bonds           []rawBond           `key:"bonds"`
	VLANs           []rawVLAN           `key:"vlans"`
	Addresses       []rawStaticAddress  `key:"addresses"`
	Routes          []rawRoute          `key:"routes"`
	DNS             []rawAddr           `key:"dns"`
	NTP             []rawString         `key:"ntp"`
	Proxy           rawProxy            `key:"proxy"`
	RegistryMirrors []rawRegistryMirror `key:"registryMirrors"`
	Firewall        rawFirewall         `key:"firewall"`
}

type rawBond struct {
	place
	Name       rawString   `key:"name,required"`
	Mode       rawString   `key:"mode"`
	Interfaces []rawString `key:"interfaces,required"`
	MTU        rawInt      `key:"mtu"`
}

type rawVLAN struct {
	place
	Name rawString `key:"name,required"`
	ID   rawInt    `key:"id,required"`
	Link rawString `key:"link,required"`
	MTU  rawInt    `key:"mtu"`
}

type rawStaticAddress struct {
	place
	Interface rawString `key:"interface,required"`
	Address   rawString `key:"address,required"`
}

type rawRoute struct {
	place
	To        rawPrefix `key:"to,required"`
	Via       rawAddr   `key:"via,required"`
	Interface rawString `key:"interface"`
	Metric    rawInt    `key:"metric"`
}

type rawProxy struct {
	place
	HTTP     rawString   `key:"http"`
	HTTPS    rawString   `key:"https"`
	Username rawString   `key:"username"`
	Password rawSecret   `key:"password"`
	No       []rawString `key:"no"`
}

type rawRegistryMirror struct {
	place
	Name      rawString   `key:"name,required"`
	Endpoints []rawString `key:"endpoints,required"`
	CA        rawString   `key:"ca"`
	Username  rawString   `key:"username"`
	Password  rawSecret   `key:"password"`
}

type rawFirewall struct {
	place
	Off   rawString  `key:"off"`
	Allow []rawAllow `key:"allow"`
}

type rawAllow struct {
	place
	From     []rawPrefix `key:"from,required"`
	Ports    []rawInt    `key:"ports,required"`
	Protocol rawString   `key:"protocol"`
}

type rawBackup struct {
	place
	Recipients []rawString `key:"recipients,required"`
	Target     rawString   `key:"target"`
	Bucket     rawString   `key:"bucket"`
	Every      rawDuration `key:"every"`
	Keep       rawInt      `key:"keep"`
	Nodes      rawInt      `key:"nodes"`
	Etcd       rawSaveEtcd `key:"etcd"`
}

type rawSaveEtcd struct {
	place
	Every   rawDuration `key:"every"`
	Keep    rawInt      `key:"keep"`
	KeepFor rawDuration `key:"keepFor"`
}

type rawIdentity struct {
	place
	Policy rawString      `key:"policy"`
	TPM    rawIdentityTPM `key:"tpm"`
}

type rawIdentityTPM struct {
	place
	PCRs []rawPCR `key:"pcrs"`
}

type rawPCR struct {
	place
	Index  rawInt      `key:"index,required"`
	SHA256 []rawString `key:"sha256,required"`
}

type rawPolicy struct {
	place
	SecondPerson []rawString `key:"secondPerson"`
}

type rawOperator struct {
	place
	Name  rawString   `key:"name,required"`
	Key   rawSecret   `key:"key"`
	Roles []rawString `key:"roles"`
}

type rawUpload struct {
	place
	Name      rawString       `key:"name,required"`
	Type      rawString       `key:"type,required"`
	Endpoint  rawString       `key:"endpoint"`
	Datastore rawString       `key:"datastore"`
	Region    rawString       `key:"region"`
	Bucket    rawString       `key:"bucket"`
	Insecure  rawBool         `key:"insecure"`
	Username  rawString       `key:"username"`
	Password  rawSecret       `key:"password"`
	Options   dict[rawString] `key:"options"`
}
