"""What the scientist wrote, and everything that follows from it before a device is touched. No torch."""
