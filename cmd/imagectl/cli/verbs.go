package cli

import "github.com/spf13/cobra"

// verbs lists every command, in the order of a cluster's life.
func verbs(g *globals) []*cobra.Command {
	return []*cobra.Command{
		newInit(g),
		newValidate(g),
		newLock(g),
		newBuild(g),
		newRun(g),
		newBundle(g),
		newUnbundle(g),
		newVerify(g),
		newDiff(g),
		newUpload(g),
		newServe(g),
		newMachines(g),
		newOperators(g),
		newCerts(g),
		newWhy(g),
		newStatus(g),
		newEtcd(g),
		newServer(g),
		newAudit(g),
		newLogs(g),
		newNode(g),
		newKubeconfig(g),
		newSecureBoot(g),
		newVersion(g),
	}
}
