// Package native runs real parts as ordinary processes, one network and mount
// namespace a node: the server with its store, bootstrapd from its installer to a
// Ready node, etcd, containerd, kubeadm and the control plane. It needs root and
// the upstream binaries: "go test -tags root ./test/native" with IMAGECTL_UPSTREAM.
//
// Two things are not real, because this rung is for machines whose kernel gives
// no cgroups to a kubelet: systemd (a few units, started and restarted by a
// program of ours) and kubelet (static pods are started as processes, of which the
// API gets to see etcd's alone, and the Node object is registered by kubectl with
// kubelet's own credentials, which are renewed). The disk is a loop device.
//
// TestClockFiveYears has the tag "clock" and programs that are built for it
// (clock/overlay, make native-years).
package native
