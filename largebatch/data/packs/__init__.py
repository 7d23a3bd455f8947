"""A data set as a few large files: what is in them, making and reading them."""
