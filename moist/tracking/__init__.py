"""Weights & Biases: runs logged to its server or to files here, uploads, and results back."""
