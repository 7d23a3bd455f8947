"""One run: assembled, trained step by step, measured, saved, and told of."""
