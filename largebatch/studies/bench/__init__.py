"""Where the time goes. Every figure is a ratio within one process, alternating, the median of several."""
