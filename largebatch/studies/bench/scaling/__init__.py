"""One recipe on one, two, four ranks."""
