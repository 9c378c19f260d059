"""W&B sweeps: registered from sweep files, and run by W&B's own agents on this machine."""
