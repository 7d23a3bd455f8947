"""`make gpu-check`: the tests that need a GPU, then every figure that was waiting for one, in under eight minutes.

    python tests/gpu_check.py [--out results/gpu] [--wheels FOLDER] [--minutes 8] [--only tests,data] [--rehearse]
    python tests/gpu_check.py --fetch-wheels FOLDER

Runs where torch 2.11, torchvision, timm, triton, tensorboard, rich, scipy, matplotlib and pytest are and no registry
can be reached; what else is needed comes as a folder of wheels, fetched on another machine by `--fetch-wheels`, and is
put on the path of this check alone. `--rehearse` runs everything tiny on the CPU.

Exit code: 0 whatever the figures are; 1 if a test or a part failed; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gpu_parts
from gpu_frame import REPOSITORY, Check, Failed, Figure, run_parts

RESERVE = 10.0  # seconds for the table and the end of whatever was stopped

# What the project imports and such a machine may lack, with what those need in turn; versions are constraints.txt's.
# Where there is no wheel (DeepSpeed), the tests that need it skip.
WHEELS = (
    "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions",
    "typer", "shellingham", "annotated-doc",
    "simplejpeg", "safetensors", "fsspec",
    "jinja2", "MarkupSafe", "PyYAML",
    "scikit-learn", "joblib", "cloudpickle", "threadpoolctl", "narwhals",
    "hypothesis", "sortedcontainers",
)  # fmt: skip
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (5, 12, 17, 24, 26, 27, 28)] + ["manylinux2014_x86_64"]


def show(figures: list[Figure]) -> None:
    import rich.box  # here, so that --fetch-wheels needs nothing
    import rich.console
    import rich.markup
    import rich.table

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("figure", "wanted", "measured", "met"):
        table.add_column(heading, justify="left" if heading in ("figure", "met") else "right")
    for figure in figures:
        table.add_row(*map(rich.markup.escape, figure))
    console = rich.console.Console()
    (console if console.is_terminal else rich.console.Console(width=120)).print(table)


SEEN = """
import importlib.metadata as m, json, os, platform, sys
import torch
seen = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0)), "cuda": torch.cuda.is_available()}
if seen["cuda"]:
    gpu = torch.cuda.get_device_properties(0)
    seen |= {"gpu": gpu.name, "gpu_gib": round(gpu.total_memory / 2**30, 1), "cuda_version": torch.version.cuda}
for name in sys.argv[1:]:
    try:
        seen[name] = m.version(name)
    except m.PackageNotFoundError:
        seen[name] = None
print(json.dumps(seen))
"""


def seen(check: Check) -> dict[str, Any]:
    """This machine, as a process of the check sees it."""
    names = ("torch", "torchvision", "timm", "triton", "numpy", "pytest", *WHEELS, "deepspeed", "nvidia-dali-cuda120")
    check.limit = time.monotonic() + 120
    code, text = check.python("-c", SEEN, *names)
    if code:
        raise Failed(f"torch cannot be loaded: {text.strip().splitlines()[-1]}")
    return json.loads(text.strip().splitlines()[-1])


def fetch_wheels(folder: Path) -> int:
    return subprocess.run(
        [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--no-deps", "--python-version", "3.12",
         "--implementation", "cp", *(word for name in PLATFORMS for word in ("--platform", name)),
         "--constraint", REPOSITORY / "constraints.txt", "--dest", folder, *WHEELS],
    ).returncode  # fmt: skip


def unpack_wheels(folder: Path, site: Path) -> None:
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise Failed(
            f"{folder} holds no wheels; where a registry is, `make gpu-wheels GPU_WHEELS={folder}` fetches them"
        )
    ended = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile",
         "--disable-pip-version-check", "--target", site, *wheels],
        capture_output=True, text=True,
    )  # fmt: skip
    if ended.returncode:
        raise Failed(f"the wheels of {folder} cannot be installed: {ended.stderr.strip().splitlines()[-1]}")


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "gpu", help="where the JSON goes")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to put on this check's path")
    parser.add_argument("--fetch-wheels", type=Path, metavar="FOLDER", help="download those wheels, and no more")
    parser.add_argument("--minutes", type=float, help="for all of it; 8, or 30 of a rehearsal")
    parser.add_argument("--only", help="parts by name, with commas")
    parser.add_argument("--rehearse", action="store_true", help="everything tiny, on the CPU")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    begun = time.monotonic()
    asked = arguments(words)
    if asked.fetch_wheels:
        return fetch_wheels(asked.fetch_wheels)
    parts = gpu_parts.parts(asked.rehearse)
    if asked.only:
        known = [part.name for part in parts]
        if odd := sorted(set(asked.only.split(",")) - set(known)):
            print(f"gpu-check: --only {odd[0]} is not a part; valid: {', '.join(known)}", file=sys.stderr)
            return 2
        parts = [part for part in parts if part.name in asked.only.split(",")]
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "check.log").unlink(missing_ok=True)
    minutes = asked.minutes or (30.0 if asked.rehearse else 8.0)
    work = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    check = Check(asked.out.resolve(), work, asked.rehearse, begun + 60 * minutes - RESERVE)
    try:
        if asked.wheels:
            check.site = work / "site"
            unpack_wheels(asked.wheels, check.site)
        machine = check.facts["machine"] = seen(check)
        print(", ".join(f"{name} {value}" for name, value in machine.items() if value is not None))
        if missing := [name for name, value in machine.items() if value is None]:
            print(f"not there: {', '.join(missing)}")
        if not machine["cuda"] and not asked.rehearse:
            print("gpu-check: torch sees no CUDA device; --rehearse runs everything tiny on the CPU", file=sys.stderr)
            return 2
        run_parts(parts, check, lambda text: print(text, flush=True))
    except Failed as reason:
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if asked.rehearse:  # nothing on a CPU says anything of these
        check.figures = [f if f.met == "not run" else f._replace(met="rehearsed") for f in check.figures]
    show(check.figures)
    print(*check.failures, sep="\n")
    result = {
        "kind": "gpu_check", "rehearsed": asked.rehearse, "seconds_in_all": round(time.monotonic() - begun, 1),
        "figures": [figure._asdict() for figure in check.figures], "failures": check.failures, **check.facts,
    }  # fmt: skip
    (check.out / "check.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(f"{time.monotonic() - begun:.0f} s; numbers and log: {asked.out}")
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
