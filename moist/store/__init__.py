"""Stage outputs on disk: keys, checksummed objects, artifacts, checkpoints, run records."""
