"""What runs and trials found: reports, objectives, Pareto fronts, queries and means. No torch."""
