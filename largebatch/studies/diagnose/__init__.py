"""``largebatch diagnose``: runs and their checkpoints -> the mathematics of ``diagnostics`` -> tables and facts.

One file for each command. What was measured lies in ``RUN/diagnostics/<kind>.json``, where the report finds it.
"""
