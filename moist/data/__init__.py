"""Data sets: finding, identifying, decoding and augmenting their images."""
