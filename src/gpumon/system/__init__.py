"""What the kernel says of this machine: storage behind a path, the process tree, limits of the cgroup."""
