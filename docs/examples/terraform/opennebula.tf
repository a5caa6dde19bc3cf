# Two workers from the template that `imagectl upload one worker` keeps current.
# The template brings the disk, the firmware, the network and the CONTEXT with
# IMAGECTL_NODE; so there is no address, key or program here. Not tried by us: no
# OpenNebula and no Terraform was at hand.

terraform {
  required_providers {
    opennebula = { source = "OpenNebula/opennebula" }
  }
}

provider "opennebula" {
  endpoint = "https://one.example.org/RPC2"
  # OPENNEBULA_USERNAME and OPENNEBULA_PASSWORD
}

# The stable name, CLUSTER-ROLE.
data "opennebula_template" "worker" {
  name = "demo-worker"
}

resource "opennebula_virtual_machine" "worker" {
  count       = 2
  name        = "w${count.index + 1}"
  template_id = data.opennebula_template.worker.id

  lifecycle {
    # A new image is for new machines: those that run are upgraded by the cluster,
    # not made anew by Terraform.
    ignore_changes = [template_id]
  }
}
