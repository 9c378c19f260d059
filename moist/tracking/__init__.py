"""Runs told to Weights & Biases, on its server or in files here."""
