package sysext

import "slices"

// EtcdPrograms are the members of etcd's archive that a node gets.
func EtcdPrograms() []string { return []string{"etcd", "etcdctl", "etcdutl"} }

// Missing returns which of the wanted names are not among the files.
func Missing(want []string, files []File) []string {
	var missing []string
	for _, w := range want {
		if !slices.ContainsFunc(files, func(f File) bool { return f.Name == w }) {
			missing = append(missing, w)
		}
	}
	return missing
}
