"""Benchmarks of moist itself: distillation, shared stages, logging, a trial's overhead."""
