"""The parts of `make gpu-check`: what each runs, and which figures it reads from what came out.

The sizes on a GPU and those of a rehearsal stand side by side in :func:`parts`. Benches are read defensively: a number
that one does not write is a figure that was not run.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_frame import REPOSITORY, Check, Failed, Figure, Part, compared, last_line, wanted_of

IMAGENET = "configs/imagenet/goyal2017.yaml"
MNIST = "configs/studies/lecture/mnist.yaml"
# Torch's own batch norm, bf16, channels-last: what timm's loop does beside it.
THROUGHPUT = ["batch.bn_batch_size=null", "precision=bf16", "channels_last=true"]
OF_OTHERS = {  # the trainer's examples/s over those of others, at least
    "synthetic": ("packed data over batches that lie ready", 0.97),
    "bare_loop": ("over the bare loop", 0.98),
    "timm": ("over timm's loop", 1.15),
    "dataloader_loop": ("over a DataLoader loop", 10.0),
}
MLPERF = 7760.0  # images/s per GPU of v4.0's result on 8 of that class: 35 epochs in 12.03 min
LECTURE = {1: ("MNIST, batch 1, seconds per epoch (lecture's V100: 364)", 36.0)}
LECTURE_FROM_1000 = ("MNIST, batch {size:,}, seconds per epoch (lecture's V100: 8.8)", 0.18)
PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "-vv", "--continue-on-collection-errors", "--durations=5"]
STEPS = {"rehearsed": 80, "real": 40}  # of the training
LAST = "test_methods.py"  # starts every method on CPU ranks first


def parts(rehearse: bool) -> list[Part]:
    """In the order of what would be missed most. The seconds add up to more than there is; few parts take theirs."""
    of_all = ("synthetic", "bare_loop", "timm")
    compiled = functools.partial(throughput, name="throughput-compiled", compiled=True)
    eager = functools.partial(throughput, name="throughput", compiled=False)
    found = [
        Part("images", 45, images, (("packed", ""),)),
        Part("training", 90, training, (("ImageNet recipe, end to end", "finishes"), ("and after SIGTERM", "resumes"))),
        Part("throughput, compiled", 130, compiled, promised(of_all, "compiled, ")),
        Part("throughput", 75, eager, promised(of_all, "eager, ")),
        Part("tests", 140, tests, (("tests marked gpu", "none fails"),)),
        Part("data", 60, data),
        Part("optimizer", 45, optimizer),
        Part("batch", 45, batch, (of_lecture(1), of_lecture(1000))),
        Part("mnist", 40, mnist, promised(("dataloader_loop",), "MNIST at 250, ")),
        Part("memory", 20, memory, (("dry run's memory over the device's own", ""),)),
        Part("deterministic", 30, deterministic, (("deterministic=true: examples/s over those without", ""),)),
    ]
    if rehearse:  # a busy machine without a GPU may take its time; compiling for it would take minutes
        return [part._replace(seconds=300) for part in found if part.run is not compiled]
    return found


def of_lecture(size: int) -> tuple[str, str]:
    what, most = LECTURE.get(size, LECTURE_FROM_1000)
    return what.format(size=size), f"≤ {most:g}"


def promised(keys: tuple[str, ...], prefix: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{prefix}{OF_OTHERS[key][0]}", f"≥ {OF_OTHERS[key][1]:g}") for key in keys)


def share_of_mlperf(prefix: str) -> str:
    return f"{prefix}images/s over {MLPERF:,.0f} (MLPerf 4.0, per GPU)"


# ---- tests ----


def tests(check: Check) -> list[Figure]:
    """Those marked gpu, from the files that have any: others may import what is not here."""
    files = [file for file in sorted((REPOSITORY / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    files.sort(key=lambda file: file.name == LAST)
    if check.rehearse:
        files = [file for file in files if file.name == "test_train.py"]
    report = check.out / "tests.txt"
    stopped = None
    try:
        _, text = check.python(*PYTEST, "-m", "gpu", *files)
    except Failed as reason:
        text, stopped = (check.work / "output.txt").read_text(errors="replace"), str(reason)
    report.write_text(text)
    counts = counted(text)
    check.facts["tests"] = counts
    if counts["failed"] or counts["errors"]:
        check.failures.append(f"tests: {said(counts)}; see {report.name}")
    elif stopped or not sum(counts[key] for key in ("passed", "skipped")):
        check.failures.append(f"tests: {said(counts)}; {stopped or 'none was found'}")
    met = "not run" if not counts["passed"] else "no" if counts["failed"] + counts["errors"] else "yes"
    if stopped and met == "yes":
        met = "no"
    ending = ", then time was up" if stopped else ""
    return [Figure("tests marked gpu", "none fails", said(counts) + ending, met)]


def counted(text: str) -> dict[str, Any]:
    """Outcomes in the output of ``pytest -vv``, and the files that could not be read for want of a package."""
    outcomes = re.findall(r"^\S+::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", text, re.M)
    unread, broken = {}, 0
    for file, told in re.findall(r"^_+ ERROR collecting (\S+) _+\n(.*?)(?=^_{3,} |^={3,})", text, re.M | re.S):
        if why := re.search(r"^E +ModuleNotFoundError: (No module named '(?!largebatch|tests).+)$", told, re.M):
            unread[file] = why[1]
        else:
            broken += 1
    return {
        "passed": outcomes.count("PASSED"),
        "failed": outcomes.count("FAILED"),
        "errors": outcomes.count("ERROR") + broken,
        "skipped": outcomes.count("SKIPPED") + outcomes.count("XFAIL"),
        "not_read": unread,
    }


def said(counts: Mapping[str, Any]) -> str:
    words = [f"{counts[key]} {key}" for key in ("passed", "failed", "errors", "skipped") if counts[key]]
    words += [f"{file} not read: {why}" for file, why in counts["not_read"].items()]
    return ", ".join(words) or "none"


# ---- ImageNet on photographs repeated ----


def images(check: Check) -> list[Figure]:
    from gpu_photographs import imagenet_like, made, samples

    if check.rehearse:
        per_class, size = 1, 40
        files, where_from = made(check.work / "made", 8, 64, 48)
    else:
        per_class, size = 4, 256
        files, where_from = samples() or made(check.work / "made", 200, 500, 375)
    check.facts["photographs"] = where_from
    folder = check.work / "imagenet"
    imagenet_like(folder, files, per_class)
    check.largebatch("data", "pack", folder, check.work / "pack", "--size", size)
    weight = sum(file.stat().st_size for file in (check.work / "pack").iterdir()) / 1e6
    return [Figure("packed", "", f"{where_from} in 1000 classes, {weight:,.0f} MB", "–")]


def recipe(check: Check, *more: str) -> list[str]:
    """The ImageNet configuration on that pack; in a rehearsal with a network for a CPU."""
    if not (check.work / "pack" / "pack.json").exists():
        raise Failed("there is no pack: the part images did not come to its end")
    tiny = ["model={name: tiny_cnn}", "data.image_size=32"] if check.rehearse else []
    return [IMAGENET, f"data.root={check.work / 'pack'}", *tiny, *more]


def training(check: Check) -> list[Figure]:
    """A run with evaluations and checkpoints; a SIGTERM after the first recorded ones, and the same command again."""
    steps, size = (STEPS["rehearsed"], 128) if check.rehearse else (STEPS["real"], 1024)
    directory = check.work / "run"
    words = ["-m", "largebatch", "train", *recipe(
        check, f"record.dir={directory}", f"steps={steps}", f"batch.global_batch_size={size}",
        "lr.warmup.epochs=0.2", "record.every_steps=2", "evaluate.every_epochs=6", "checkpoint.every_epochs=6",
        *(["batch.micro_batch_size=64"] if check.rehearse else []),
    )]  # fmt: skip
    lines = directory / "metrics.jsonl"
    code, text = check.python(*words, stop_when=lambda: lines.exists() and '"train"' in lines.read_text())
    if code not in (0, 143):
        raise Failed(f"training ended with {code}: {last_line(text)}")
    stopped = code == 143
    if stopped:
        code, text = check.python(*words)
        if code:
            raise Failed(f"the resumed training ended with {code}: {last_line(text)}")
    events = [json.loads(line) for line in lines.read_text().splitlines()]
    result = json.loads((directory / "result.json").read_text())
    check.facts["training"] = {"result": result, "events": events}
    resumed = [event["step"] for event in events if event["event"] == "resume"]
    speeds = [event["examples_per_second"] for event in events if event.get("examples_per_second")]
    word = f"{result['steps']} steps, {sum(e['event'] == 'evaluate' for e in events)} evaluations"
    return [
        Figure("ImageNet recipe, end to end", "finishes", word, "yes" if result["steps"] == steps else "no"),
        Figure("and after SIGTERM", "resumes", f"at step {resumed[0]}" if resumed else "it had ended before",
               "yes" if resumed else "not run"),
        compared("images/s in its last recorded steps", speeds[-1] if speeds else None),
    ]  # fmt: skip


# ---- benches ----


def throughput(check: Check, name: str, compiled: bool) -> list[Figure]:
    size, pairs, steps = (64, 1, 1) if check.rehearse else (512, 5 if compiled else 3, 8)
    facts = check.bench(
        name, "throughput",
        *recipe(check, *THROUGHPUT, f"batch.global_batch_size={size}", f"compile={str(compiled).lower()}"),
        "--pairs", pairs, "--steps", steps, "--compile-timm" if compiled else "--eager-timm",
    )  # fmt: skip
    return throughput_figures(facts, "compiled, " if compiled else "eager, ")


def throughput_figures(facts: Mapping[str, Any], prefix: str) -> list[Figure]:
    figures = ratios(facts, prefix)
    speed = median_of(facts, "trainer_examples_per_second")
    if speed is not None:
        figures.append(compared(f"{prefix}images/s", speed))
        figures.append(compared(share_of_mlperf(prefix), speed / MLPERF, at_least=0.5))
    if verdict := facts.get("verdict"):
        text = verdict.get("sentence", "") if isinstance(verdict, dict) else str(verdict)
        figures.append(Figure(f"{prefix}what bounds it", "", text, "–"))
    return figures


def ratios(facts: Mapping[str, Any], prefix: str) -> list[Figure]:
    """Of like with like: the trainer on ready batches beside a loop that has ready batches."""
    beside = {row["name"]: row.get("compared_with", "trainer") for row in facts.get("contestants", [])}
    found = {key: median_of(facts, f"{beside.get(key, 'trainer')}_over_{key}") for key in OF_OTHERS}
    return [
        compared(f"{prefix}{what}", found[key], at_least=least)
        for key, (what, least) in OF_OTHERS.items()
        if found[key] is not None
    ]


def median_of(facts: Mapping[str, Any], key: str) -> float | None:
    """``<key>_median``, or that of the list under ``key``."""
    value = facts.get(f"{key}_median")
    if isinstance(value, (int, float)):
        return float(value)
    values = facts.get(key)
    if isinstance(values, list) and values:
        return float(sorted(values)[len(values) // 2])
    return None


def mnist(check: Check) -> list[Figure]:
    """Small images at batch 250, a divisor of 60,000, beside a DataLoader."""
    pairs, steps = (1, 2) if check.rehearse else (5, 200)
    facts = check.bench("throughput-mnist", "throughput", *small(check), "--pairs", pairs, "--steps", steps)
    return [figure for figure in ratios(facts, "MNIST at 250, ") if "DataLoader" in figure.what]


def small(check: Check) -> list[str]:
    """The lecture's recipe; where the images are not, synthetic ones of their shape."""
    import os

    from_files = (Path(os.environ.get("LARGEBATCH_DATA", "-")) / "MNIST").is_dir()
    images = 1000 if check.rehearse else 60_000
    synthetic = "data={name: synthetic, image_shape: [1, 28, 28], num_classes: 10, examples: %d}" % images  # noqa: UP031
    return [MNIST, *([] if from_files and not check.rehearse else [synthetic]), "batch.global_batch_size=250"]


def data(check: Check) -> list[Figure]:
    options = ["--size", 32, "--images", 16, "--seconds", 0.1, "--repeats", 1] if check.rehearse else [
        "--images", 512, "--seconds", 0.6, "--repeats", 3]  # fmt: skip
    facts = check.bench("data", "data", check.work / "imagenet", *options)
    return wanted_of(facts)


def optimizer(check: Check) -> list[Figure]:
    options = (
        ["--model", "timm/test_resnet", "--device", "cpu", "--repeats", 3] if check.rehearse else ["--device", "cuda"]
    )
    facts = check.bench("optimizer", "optimizer", *options)
    figures = []
    for model in facts["models"]:
        figures += [figure._replace(what=f"{model['model']}: {figure.what}") for figure in wanted_of(model)]
    return figures


def batch(check: Check) -> list[Figure]:
    sizes = "1,1000" if check.rehearse else "1,10,100,1000,10000,60000"
    recipe_of_mnist = small(check)[:-1]
    options = ["--seconds", 0.1, "--repeats", 1] if check.rehearse else ["--seconds", 2.0]
    return batch_figures(check.bench("batch-mnist", "batch", *recipe_of_mnist, "--sizes", sizes, *options))


def batch_figures(facts: Mapping[str, Any]) -> list[Figure]:
    figures = []
    for row in facts["sizes"]:
        size, seconds = row["global_batch_size"], row.get("seconds_per_epoch")
        if size == 1 or size >= 1000:
            what, most = LECTURE.get(size, LECTURE_FROM_1000)
            figures.append(compared(what.format(size=size), seconds, at_most=most))
    return figures


def deterministic(check: Check) -> list[Figure]:
    size, pairs, steps = (64, 1, 1) if check.rehearse else (256, 3, 6)
    facts = check.bench(
        "deterministic", "throughput", *recipe(check, *THROUGHPUT, f"batch.global_batch_size={size}"),
        "--beside", "deterministic=true", "--pairs", pairs, "--steps", steps,
    )  # fmt: skip
    over = median_of(facts, "trainer_over_beside")
    return [compared("deterministic=true: examples/s over those without", 1 / over if over else None)]


def memory(check: Check) -> list[Figure]:
    """The dry run's word for the eager measurement, beside what the device had allocated."""
    size = 64 if check.rehearse else 512
    file = check.work / "memory.json"
    check.largebatch(
        "train", "--dry-run", *recipe(check, *THROUGHPUT, f"batch.global_batch_size={size}"), "--json", file
    )
    told = json.loads(file.read_text())["memory_total_per_rank_mib"]
    check.facts["dry_run_memory_mib"] = told
    measured = check.out / "throughput.json"
    facts = json.loads(measured.read_text()).get("memory", {}) if measured.exists() else {}
    real = facts.get("peak_allocated_bytes", 0) / 2**20
    return [compared("dry run's memory over the device's own", told / real if real else None)]
