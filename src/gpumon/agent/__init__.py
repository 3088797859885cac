"""The node agent: one privileged process per machine that reads all devices, for all who may not."""
