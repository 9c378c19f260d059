"""Data sets: where their files are, how they are decoded, augmented and identified."""
