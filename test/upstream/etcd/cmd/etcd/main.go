// Command etcd is upstream's server: its own main package lives in a module
// that cannot be required (go.etcd.io/etcd/v3 has replace lines of its own).
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
