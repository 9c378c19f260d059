"""MoIST."""
