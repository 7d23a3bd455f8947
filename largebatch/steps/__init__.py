"""What a step and an evaluation are, and what may stand beside a step. The run puts them together."""
