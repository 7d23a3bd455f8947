"""JPEG decoded, cropped, resized and mirrored by NVIDIA DALI, on the CPU or, where the run is on CUDA, on the GPU.

An optional extra: ``pip install 'largebatch[dali]'``. Workers read the files and draw the windows, and DALI is fed
both: examples, windows and flips are those of every other decoder, in any world and after a resume. Pixels differ as
decoders do. Where DALI refuses a file, the CPU reads that micro-batch again and names the file, or takes it. A damaged
body that DALI takes for an image is trained on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largebatch.data.encoded import DeviceDecodedSplit, Encoded
from largebatch.data.workers import Answer, Reader
from largebatch.errors import UserError


class DaliSplit(DeviceDecodedSplit):
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        try:
            import nvidia.dali  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError(
                "data.decode = dali needs NVIDIA DALI, which is not installed; pip install 'largebatch[dali]', "
                "or take data.decode = turbo"
            ) from None

    def _viewed(
        self, answers: Iterator[Answer], reader: Reader, device: torch.device
    ) -> Iterator[tuple[Answer, Tensor]]:
        decoder, before = _Decoder(max(1, self.workers), device), None
        for answer in answers:
            decoder.begin(answer.images, answer.request.side)
            if before is not None:
                yield before, self._finished(before, decoder, reader, device)
            before = answer
        if before is not None:
            yield before, self._finished(before, decoder, reader, device)

    def _finished(self, answer: Answer, decoder: _Decoder, reader: Reader, device: torch.device) -> Tensor:
        encoded, side = answer.images, answer.request.side
        views = torch.empty((len(encoded.ends), side, side, 3), dtype=torch.uint8, device=device)
        if len(encoded.rows):
            views[torch.from_numpy(encoded.rows).to(device)] = encoded.views.to(device, non_blocking=True)
        rows = [row for row, _, _ in encoded.files()]
        decoded = decoder.finish()
        if decoded is not None:
            views[torch.tensor(rows, dtype=torch.int64, device=device)] = decoded
            return views
        for row in rows:
            _, view = self._read_again(answer, row, reader)
            views[row] = view.to(device)
        return views


class _Decoder:
    """A DALI pipeline that works on one batch while the one before is trained on."""

    def __init__(self, threads: int, device: torch.device) -> None:
        self.threads, self.device = threads, device
        self.pipeline: Any = None
        self.largest = 0
        self.begun: deque[tuple[list, int]] = deque()

    def begin(self, encoded: Encoded, side: int) -> None:
        files = list(encoded.files())
        self.begun.append((files, side))
        if len(files) > self.largest:
            self._start_anew(len(files))
        else:
            self._feed(files, side)

    def finish(self) -> Tensor | None:
        """The views (n, S, S, 3) of the oldest batch that was begun; None where DALI refuses one of its files."""
        files, side = self.begun.popleft()
        views = torch.empty((len(files), side, side, 3), dtype=torch.uint8, device=self.device)
        if not files:
            return views
        from nvidia.dali.plugin.pytorch import feed_ndarray  # pyright: ignore[reportMissingImports]

        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            (outputs,) = self.pipeline.share_outputs()
        except RuntimeError:
            self._start_anew(self.largest)  # an error ends a pipeline
            return None
        feed_ndarray(outputs.as_tensor(), views, cuda_stream=stream)
        self.pipeline.release_outputs()
        return views

    def _start_anew(self, largest: int) -> None:
        self.largest = largest
        self.pipeline = _pipeline(largest, self.threads, self.device)
        for files, side in self.begun:
            self._feed(files, side)

    def _feed(self, files: list, side: int) -> None:
        if not files:
            return
        _, data, windows = zip(*files, strict=True)
        feed = self.pipeline.feed_input
        feed("data", [file.numpy() for file in data])
        feed("start", _rows([window.region[1::-1] for window in windows]))
        feed("end", _rows([window.region[:1:-1] for window in windows]))
        feed("resized", _rows([window.resized[::-1] for window in windows], np.float32))
        feed("corner", _rows([window.corner[::-1] for window in windows]))
        feed("side", _rows([(side, side)] * len(files)))
        feed("flip", _rows([window.flip for window in windows]))
        self.pipeline.schedule_run()


def _rows(values: Sequence, dtype: type = np.int32) -> list[np.ndarray]:
    return list(np.array(values, dtype))


def _pipeline(largest: int, threads: int, device: torch.device) -> Any:
    from nvidia.dali import Pipeline, fn, types  # pyright: ignore[reportMissingImports]

    on_gpu = device.type == "cuda"
    pipeline = Pipeline(
        batch_size=largest,
        num_threads=threads,
        device_id=(device.index or 0) if on_gpu else None,
        prefetch_queue_depth=1,  # with more, the first run would want as many batches at once
    )

    def fed(name: str, dtype: Any = types.INT32, ndim: int = 1) -> Any:
        return fn.external_source(name=name, dtype=dtype, ndim=ndim)

    with pipeline:
        images = fn.decoders.image_slice(
            fed("data", types.UINT8), start=fed("start"), end=fed("end"), axes=[0, 1],
            device="mixed" if on_gpu else "cpu", output_type=types.RGB, jpeg_fancy_upsampling=True,
            adjust_orientation=False,
        )  # fmt: skip
        images = fn.resize(
            images, size=fed("resized", types.FLOAT), interp_type=types.INTERP_TRIANGULAR, antialias=True
        )
        images = fn.slice(images, start=fed("corner"), shape=fed("side"), axes=[0, 1])
        pipeline.set_outputs(fn.flip(images, horizontal=fed("flip", ndim=0)))
    pipeline.build()
    return pipeline
