"""A training step taken apart: the trainer beside its ceiling, a bare loop, timm's and a DataLoader."""
