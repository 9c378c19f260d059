"""Terminal tables, live progress, plots, the HTML report, and a study's summary in W&B."""
