"""Models by name and version, on the checkpoint store."""
