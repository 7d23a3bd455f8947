"""A search over several keys of a recipe: the same number of trials and the same rules for every row."""
