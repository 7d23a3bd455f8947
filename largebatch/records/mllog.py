"""MLPerf's log lines of one run, written with MLCommons' own ``mlperf-logging``; plain numbers in, no torch.

The conventions are those of MLPerf Training's ResNet benchmark (``training_rules.adoc``; the compliance checker's
``closed_resnet*.yaml``): epochs are counted from 1, accuracies are fractions of 1, a block is the training between
two evaluations, and the clock stops at the first evaluation that reaches the target. A run that ends without it is
``aborted``. One process writes, one line at a time, each flushed; a resumed run goes on in the same file.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

from largebatch.errors import UserError
from largebatch.records.files import write_text

PREFIX = ":::MLLOG "
RESNET_TARGET = 0.759  # ImageNet, ResNet-50 v1.5
CLOSED_END_LR = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlperfRun:
    """What MLPerf asks to know before a run; learning rates as the optimizer gets them, lengths as named."""

    seed: int
    global_batch_size: int
    gradient_accumulation_steps: int
    train_samples: int
    eval_samples: int
    bn_span: int  # examples that share one batch norm's statistics
    optimizer: str
    peak_lr: float
    end_lr: float
    decay_power: float | None  # None: the decay is no polynomial
    decay_steps: int
    warmup_epochs: float
    momentum: float
    weight_decay: float
    epsilon: float = 0.0  # of LARS
    evaluate_every_epochs: float = 4.0
    target: float | None = None  # the accuracy that ends MLPerf's clock, a fraction; None: the end of the run does
    benchmark: str = "resnet"
    methods: tuple[str, ...] = ()  # keys of what the run does beside MLPerf's reference
    division: str | None = None  # else closed, where :func:`open_because` has nothing to say
    organization: str = "largebatch"
    platform: str = "unnamed"
    status: str = "research"


class MlperfLog:
    """``start``, then ``evaluation`` after each one, then ``stop``. For rank zero alone."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.facts: MlperfRun | None = None
        self.begun = time.time()  # init_start: what was built before start() belongs to MLPerf's initialisation
        lines = _lines(self.path)
        self.started = any(line["key"] == "run_start" for line in lines)
        stopped = [line for line in lines if line["key"] == "run_stop"]
        self.reached = any(line["metadata"]["status"] == "success" for line in stopped)
        blocks = [line for line in lines if line["key"] in ("block_start", "block_stop")]
        self.block_open = bool(blocks) and blocks[-1]["key"] == "block_start"
        self.first_epoch = blocks[-1]["metadata"]["first_epoch_num"] if blocks else 1
        self.logger, self.handler = _logger(self.path)

    @property
    def problem(self) -> str | None:
        """Why a line is missing in the file; None where all are there."""
        return self.handler.problem

    def start(self, facts: MlperfRun, epoch: float = 0.0) -> None:
        """The facts and ``run_start``; in a file that has them, one line that says at which epoch it goes on."""
        self.facts = facts
        if self.reached:
            return
        if self.started:
            self._event("run_resumed", metadata={"epoch_num": self._epochs(epoch)})
        else:
            for key, value in _submission(facts).items():
                self._event(key, value)
            self._event("cache_clear", True)
            self.logger.start("init_start", time_ms=int(1000 * self.begun))
            for key, value in {**_workload(facts), **_optimizer(facts)}.items():
                self._event(key, value)
            self.logger.end("init_stop")
            self.logger.start("run_start")
            self.started = True
        self._open_block(epoch)

    def evaluation(self, epoch: float, accuracy: float, seconds: float = 0.0) -> None:
        """An evaluation of the whole test set that has just ended, ``seconds`` after it began."""
        assert self.facts is not None, "start() first"
        if self.reached:
            return
        number = {"epoch_num": self._epochs(epoch)}
        began = int(1000 * (time.time() - seconds))
        self._close_block(began)
        self.logger.start("eval_start", metadata=number, time_ms=began)
        self._event("eval_accuracy", float(accuracy), number)
        self.logger.end("eval_stop", metadata=number)
        if self.facts.target is not None and accuracy >= self.facts.target:
            self._stop("success")
            self.reached = True
            return
        self._open_block(epoch)

    def stop(self, finished: bool) -> None:
        """The end of the run for good: ``success`` unless it did not finish, or has a target and missed it."""
        if self.facts is not None and not self.reached:
            self._close_block()
            self._stop("success" if finished and self.facts.target is None else "aborted")
        self.close()

    def close(self) -> None:
        """Let go of the file; nothing is written."""
        self.handler.close()

    def _stop(self, status: str) -> None:
        self.logger.end("run_stop", metadata={"status": status})

    def _event(self, key: str, value: Any = None, metadata: dict[str, Any] | None = None) -> None:
        self.logger.event(key, value, metadata=metadata)

    def _open_block(self, epoch: float) -> None:
        assert self.facts is not None
        if not self.block_open:
            self.first_epoch = int(self._epochs(epoch)) + 1
            count = self.facts.evaluate_every_epochs
            self.logger.start("block_start", metadata={"first_epoch_num": self.first_epoch, "epoch_count": count})
        self.block_open = True

    def _close_block(self, time_ms: int | None = None) -> None:
        if self.block_open:
            self.logger.end("block_stop", metadata={"first_epoch_num": self.first_epoch}, time_ms=time_ms)
        self.block_open = False

    def _epochs(self, epoch: float) -> float:
        """A mark of n epochs falls on the first step that ends behind it: less than a step away, n is meant."""
        assert self.facts is not None
        whole = round(epoch)
        near = abs(epoch - whole) <= self.facts.global_batch_size / self.facts.train_samples
        return whole if near else round(epoch, 4)


def division_of(facts: MlperfRun) -> str:
    return facts.division or ("open" if open_because(facts) else "closed")


def open_because(facts: MlperfRun) -> str | None:
    """What the closed division does not allow in a run, the first of it; None where it is within the rules.

    Checked is what MLCommons' compliance checker checks (``training_4.0.0/closed_resnet.yaml``,
    ``closed_resnet_lars.yaml``, ``closed_resnet_sgd.yaml``), and that the run is the benchmark, with its data, network
    and target, without methods that its reference does not have (``training_rules.adoc``, closed division: the
    reference's model, optimizer and preprocessing). Who submits a log has more to keep to than can be seen here.
    """
    wrong = (
        (facts.benchmark != "resnet" or facts.target is None, "it is not ResNet-50 on the whole of ImageNet"),
        (facts.optimizer not in ("lars", "sgd"), f"its optimizer is {facts.optimizer}, not lars or sgd"),
        (bool(facts.methods), f"the reference has no {facts.methods[0] if facts.methods else ''}"),
        (facts.decay_power is None, "its learning rate does not decay as a polynomial"),
        (facts.optimizer == "lars" and facts.decay_power != 2, f"its decay has the power {facts.decay_power}, not 2"),
        (facts.end_lr != CLOSED_END_LR, f"its decay ends at {facts.end_lr:g}, not at {CLOSED_END_LR:g}"),
        (facts.optimizer == "lars" and facts.epsilon != 0, f"the eps of LARS is {facts.epsilon:g}, not 0"),
        (not _is_power_of_2(facts.weight_decay / 1e-4), f"weight decay {facts.weight_decay:g} is not 1e-4 · 2ⁿ"),
        (
            facts.optimizer == "sgd" and not (facts.peak_lr / 0.001).is_integer(),
            f"the learning rate {facts.peak_lr:g} of SGD is no multiple of 0.001",
        ),
    )
    return next((reason for is_so, reason in wrong if is_so), None)


def _is_power_of_2(number: float) -> bool:
    return number > 0 and math.log2(number).is_integer()


def _submission(facts: MlperfRun) -> dict[str, Any]:
    return {
        "submission_benchmark": facts.benchmark,
        "submission_division": division_of(facts),
        "submission_org": facts.organization,
        "submission_platform": facts.platform,
        "submission_status": facts.status,
    }


def _workload(facts: MlperfRun) -> dict[str, Any]:
    return {
        "seed": facts.seed,
        "global_batch_size": facts.global_batch_size,
        "gradient_accumulation_steps": facts.gradient_accumulation_steps,
        "train_samples": facts.train_samples,
        "eval_samples": facts.eval_samples,
        "model_bn_span": facts.bn_span,
        "opt_name": facts.optimizer,
        "opt_base_learning_rate": facts.peak_lr,
    }


def _optimizer(facts: MlperfRun) -> dict[str, Any]:
    """MLPerf's names; those of the rules carry the optimizer's, and SGD's warm-up does not."""
    own = {"lars": "lars_opt", "sgd": "sgd_opt"}.get(facts.optimizer, "opt")
    base = {} if own == "opt" else {f"{own}_base_learning_rate": facts.peak_lr}
    named = {
        **base,
        f"{own}_end_learning_rate": facts.end_lr,
        f"{own}_learning_rate_decay_steps": facts.decay_steps,
        f"{'lars_opt' if own == 'lars_opt' else 'opt'}_learning_rate_warmup_epochs": facts.warmup_epochs,
        f"{own}_momentum": facts.momentum,
        f"{own}_weight_decay": facts.weight_decay,
    }
    if facts.decay_power is not None:
        named[f"{own}_learning_rate_decay_poly_power"] = facts.decay_power
    if facts.optimizer == "lars":
        named["lars_epsilon"] = facts.epsilon
    return named


def _lines(path: Path) -> list[dict[str, Any]]:
    """What the file holds already; a line cut off by a crash is ended, so that the next one begins anew."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        write_text(path, text)
    return [json.loads(line.removeprefix(PREFIX)) for line in text.splitlines() if line.startswith(PREFIX)]


class _Lines(logging.FileHandler):
    """Notes what it could not write, where logging's own would print a traceback."""

    problem: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.problem = None  # what could not be written before is written with this
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        self.problem = f"{self.baseFilename} cannot be written: {getattr(error, 'strerror', None) or error}"


def _logger(path: Path) -> tuple[Any, _Lines]:
    """MLCommons' logger on this file alone: not their shared one, which also prints."""
    try:
        from mlperf_logging.mllog import mllog
    except ImportError:
        raise UserError(
            "record.mllog = true needs MLCommons' mlperf-logging, which is not installed; valid: pip install "
            "'largebatch[mllog]', or record.mllog=false"
        ) from None
    ours = logging.Logger("largebatch.records.mllog", logging.INFO)
    handler = _Lines(path, mode="a", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    package = re.escape(str(Path(__file__).parents[2]))
    return mllog.MLLogger(ours, default_stack_offset=1, root_dir=package), handler
