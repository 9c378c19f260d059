"""The HTML report of a study or a run: one file, which loads nothing and runs one short script."""
