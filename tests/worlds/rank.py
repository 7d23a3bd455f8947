"""Stands for largebatch where only its signals matter: waits for one, "saves", leaves its code where it was told to.

A file named `all` is how the ranks of one machine tell the others to stop. It runs as the ``__main__`` of a package.
"""

import os
import signal
import sys
import time
from pathlib import Path

rank, stop_file = os.environ["RANK"], Path(os.environ["LARGEBATCH_STOP_FILE"])
if stop_file.read_text():
    sys.exit(int(stop_file.read_text()))
noticed: list[int] = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, _: noticed.append(number))
Path(f"ready{rank}").touch()
while not noticed:
    time.sleep(0.02)
    if Path("all").exists():
        noticed.append(int(Path("all").read_text()))
time.sleep(0.5)
assert len(noticed) == 1, noticed
if rank == "0":
    Path("unfinished").write_text(str(int(noticed[0])))
    os.rename("unfinished", "all")
Path(f"saved{rank}").write_text(" ".join(sys.argv[1:]))
if os.environ["LOCAL_RANK"] == "0":
    stop_file.write_text(str(128 + noticed[0]))
late = time.monotonic() + 10
while time.monotonic() < late and len(list(Path().glob("saved*"))) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.02)  # a launcher that is left by one ends the others, whether they have saved or not
sys.exit(128 + noticed[0])
