"""A fork server of our own, whose signals are blocked: whoever shares multiprocessing's has it as it was.

multiprocessing has one fork server for all of a process. Ours hears neither a Ctrl-C nor a SIGTERM to the process
group, nor do its workers from their first moment on; a process that somebody else starts should.
"""

from __future__ import annotations

import signal
import threading
from multiprocessing import forkserver, popen_forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
PRELOADED = ["torch", "largebatch.data.workers", "largebatch.data.items"]


class QuietPopen(popen_forkserver.Popen):
    def _launch(self, process_obj: Any) -> None:
        with _swapping:  # what starts a process asks the module for its server's method
            theirs, forkserver.connect_to_new_process = (
                forkserver.connect_to_new_process,
                _server.connect_to_new_process,
            )
            try:
                super()._launch(process_obj)  # type: ignore[misc]
            finally:
                forkserver.connect_to_new_process = theirs


class QuietProcess(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> QuietPopen:
        return QuietPopen(process_obj)


class QuietContext(ForkServerContext):
    Process = QuietProcess  # type: ignore[assignment]


_server = forkserver.ForkServer()
_swapping = threading.Lock()


def running() -> QuietContext:
    """The context of processes that the server forks; it is started where it does not run."""
    _server.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # first, because starting it unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        _server.ensure_running()  # inherits the mask, and so do its workers
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return QuietContext()
