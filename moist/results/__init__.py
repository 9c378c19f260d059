"""Results of runs and trials: reports, objectives, Pareto fronts, queries, averages. No torch."""
