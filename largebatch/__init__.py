"""Train with a large batch as fast as the machines allow, and prove that nothing was lost."""

__version__ = "0.1.0"
