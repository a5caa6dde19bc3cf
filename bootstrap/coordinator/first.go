package coordinator

import "github.com/imagectl/imagectl/bootstrap/machine"

// chooseEtcdFirst names who starts etcd, and another one when that was retired before anybody saw
// it do so. What it made nobody else has: it was etcd's only member, kubeadm was not begun, the
// server refuses the machine from then on, and another one's etcd has another identity.
func chooseEtcdFirst(nodes []Node, c Choices) Choices {
	if n := find(nodes, c.EtcdFirst); n != nil && n.State == machine.Retired && !c.EtcdFormed {
		c.EtcdFirst = ""
	}
	if c.EtcdFirst != "" {
		return c
	}
	for _, n := range nodes {
		if n.ControlPlane && n.Seen != nil && !n.Seen.Installer && working(n.State) {
			c.EtcdFirst = n.Name
			break
		}
	}
	return c
}

// chooseKubernetesFirst names who runs kubeadm init: who started etcd; and a voter that is well
// when that one was retired before it was done. What half an init has left in etcd is what
// all of it would: kubeadm's phases write it again, with the same CAs and keys, which are
// the server's. The Node object of the machine that is gone may be there, and its lease as an API
// server ends within seconds.
func chooseKubernetesFirst(nodes []Node, c Choices) Choices {
	if !c.EtcdFormed || c.KubernetesFormed {
		return c
	}
	if c.KubernetesFirst == "" {
		c.KubernetesFirst = c.EtcdFirst
	}
	if n := find(nodes, c.KubernetesFirst); n == nil || n.State != machine.Retired {
		return c
	}
	for _, n := range nodes {
		if n.ControlPlane && sound(n, c) && !n.Seen.Installer && n.Name != c.EtcdLeaving {
			c.KubernetesFirst = n.Name
			break
		}
	}
	return c
}
