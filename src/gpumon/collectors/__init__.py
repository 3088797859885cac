"""Everything that reads a device or a kernel file; one source per file, each registered by one line."""
