"""The processes of a run and the machine below them: groups, launchers, signals, who stands still, determinism."""
