"""Numbers of devices as they are asked for, and those near by that a batch factors into."""

from __future__ import annotations

import re
from collections.abc import Iterable

from largebatch.errors import UserError
from largebatch.plan.batch import divisors
from largebatch.report.numerals import count
from largebatch.studies.cluster.machine import Machine

MOST = 1_000_000


def parse(option: str, text: str) -> list[int]:
    """``8..1024``: 8, 16, ... and the end; ``8,48,64``; ``64``. Ascending."""
    if found := re.fullmatch(r"(\d{1,12})\.\.(\d{1,12})", text):
        first, last = int(found[1]), int(found[2])
        if not 0 < first <= last:
            raise UserError(f"--{option} {text} should ascend from 1 or more, as in --{option} 8..1024")
        numbers = [first]
        while 2 * numbers[-1] <= last:
            numbers.append(2 * numbers[-1])
        return sorted({*numbers, last})
    parts = text.split(",")
    if not all(re.fullmatch(r"[1-9]\d{0,11}", part) for part in parts):
        raise UserError(f"--{option} {text[:60]} is no range; write --{option} 8..1024, or numbers: --{option} 8,48,64")
    return sorted({int(part) for part in parts})


def devices_of(text: str, machine: Machine) -> list[int]:
    """Whole hosts, or less than one."""
    numbers = parse("devices", text)
    host = machine.host
    what = "host" if machine.devices_per_host else "node"
    for number in numbers:
        if number > MOST:
            raise UserError(f"--devices {text[:60]}: at most {count(MOST)} can be planned")
        if number > host and number % host:
            near = number // host * host
            raise UserError(
                f"--devices {text}: a {what} of {machine.name} has {host} devices, and {number} are no whole {what}s; "
                f"nearest: {near} or {near + host}"
            )
    return numbers


def nearest(devices: int, batches: Iterable[int], machine: Machine) -> list[int]:
    """Below and above, numbers of devices of whole hosts that divide one of the batches."""
    host = machine.host
    fitting = {
        number
        for batch in batches
        for number in divisors(batch)
        if number <= MOST and (number <= host or number % host == 0)
    }
    below = max((number for number in fitting if number < devices), default=None)
    above = min((number for number in fitting if number > devices), default=None)
    return [number for number in (below, above) if number is not None]
