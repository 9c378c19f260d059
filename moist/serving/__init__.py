"""Trained models on new images."""

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
"""The formats that models are exported in, and how their files' names end."""
