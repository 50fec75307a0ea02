"""What runs inside a kernel, and the provisioner that puts it there."""
