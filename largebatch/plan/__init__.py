"""Arithmetic: which examples belong to which step, the learning rate, what a run is judged by. No torch."""
