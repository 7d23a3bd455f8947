"""WebDataset's shards, here or in an object store."""
