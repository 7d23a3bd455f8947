"""What is asked of recipes, runs and machines beside training: comparisons, measurements, diagnostics."""
