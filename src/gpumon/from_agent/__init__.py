"""The node's agent, seen from a process: readings of devices that the process may not read itself."""
