"""What leaves the program for people: a terminal without markup or raw names, and small plots of signs."""
