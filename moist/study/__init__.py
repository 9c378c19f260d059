"""Studies: a driver draws trials, screens them, runs them in worker processes, stores results."""
