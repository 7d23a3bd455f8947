"""What scripts and notebooks call: ``largebatch`` hands out the names, each imported when it is first asked for."""
