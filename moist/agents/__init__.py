"""W&B sweeps: registered from the files in sweeps/, and run by W&B's own agents here."""
