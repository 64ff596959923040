"""What `mstl doctor` looks at: this machine, its devices, the given paths, and the nodes of a hostfile."""
