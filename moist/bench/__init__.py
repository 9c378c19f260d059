"""Benchmarks of moist itself: what distilling, sharing, a trial and tracking cost."""
