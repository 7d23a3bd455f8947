"""What is left on the disk, and how: for every room that writes, and for whoever reads it afterwards. No torch.

files.py           a file that is there whole or not at all
lines.py           a file that grows by whole lines
facts.py           facts as JSON; with a checksum of their own where a change must be seen
circumstances.py   what was measured on what, by which commit, versions and command
names.py           what a run directory holds, by name
typed.py           records as types: strict where a reader relies on it, lenient elsewhere
run.py             what a run directory's files hold
comparison.py      what comparison.json holds
"""
