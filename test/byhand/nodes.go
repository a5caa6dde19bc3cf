package byhand

// Nodes is Kubernetes' list of nodes (at NodesPath), as far as it says who is Ready.
type Nodes struct {
	Items []struct {
		Metadata struct{ Name string }
		Status   struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
}

// NodesPath is where the API has them.
const NodesPath = "/api/v1/nodes"

// Ready lists the nodes that Kubernetes finds Ready, and why not of the others.
func (l Nodes) Ready() (yes map[string]bool, no string) {
	yes = map[string]bool{}
	for _, n := range l.Items {
		for _, c := range n.Status.Conditions {
			switch {
			case c.Type != "Ready":
			case c.Status == "True":
				yes[n.Metadata.Name] = true
			default:
				no = n.Metadata.Name + ": " + c.Message
			}
		}
	}
	return yes, no
}
