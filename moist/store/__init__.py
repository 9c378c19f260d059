"""Stage outputs on disk: keys, checksummed objects, artifacts, checkpoints, and run records."""
