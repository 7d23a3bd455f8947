"""MB/s per core of `largebatch data tokenize` beside `datasets.map` with the same tokenizer, taking turns.

    python results/text/tokenizing.py ENGLISH VOCABULARY [ROUNDS]

ENGLISH is the folder that `largebatch data fetch english` made; VOCABULARY a vocab.txt. All work in one thread, and
what is divided by is processor time, so that others on the machine matter less. Ours
reads plain text and writes a pack; theirs begins with the documents in a saved data set and writes one of numbers.
"""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import tokenizers
import transformers

from largebatch.data.text import reading, tokenizing, wordpiece
from largebatch.data.text.sources import text_source

ROUNDS = 3


def measured(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main(english: str, vocabulary_file: str, rounds: int) -> None:
    folder = Path(tempfile.mkdtemp())
    vocabulary = wordpiece.read_vocabulary(Path(vocabulary_file))
    shards = text_source(english).shards(2**24)
    documents = [document for shard in shards for piece in shard for document in reading.documents(piece, "text")]
    plain = folder / "plain.txt"
    plain.write_text("\n\n".join("\n".join(lines) for lines in documents) + "\n", encoding="utf-8")
    megabytes = plain.stat().st_size / 1e6
    datasets.Dataset.from_dict({"text": ["\n".join(lines) for lines in documents]}).save_to_disk(str(folder / "saved"))
    saved = datasets.load_from_disk(str(folder / "saved"))
    bare = wordpiece.tokenizer_of(vocabulary, cased=False)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bare, unk_token=wordpiece.UNKNOWN)

    def ours() -> None:
        shutil.rmtree(folder / "pack", ignore_errors=True)
        tokenizing.tokenize(
            text_source(str(plain)), folder / "pack", tokenizing.Wanted(vocabulary, hold_out=0.01), workers=0
        )

    def mapped(name: str, encode: Callable[[list[str]], list[list[int]]]) -> Callable[[], object]:
        return lambda: saved.map(
            lambda rows: {"input_ids": encode(rows["text"])},
            batched=True, remove_columns=["text"], cache_file_name=str(folder / f"{name}.arrow"),
            load_from_cache_file=False,
        )  # fmt: skip

    contestants = {
        "largebatch data tokenize": ours,
        "datasets.map, tokenizers": mapped(
            "bare", lambda texts: [one.ids for one in bare.encode_batch_fast(texts, add_special_tokens=False)]
        ),
        "datasets.map, transformers": mapped(
            "fast", lambda texts: fast(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            seconds[name].append(measured(work))
    shutil.rmtree(folder)
    best = {name: megabytes / statistics.median(taken) for name, taken in seconds.items()}
    libraries = f"tokenizers {tokenizers.__version__}, datasets {datasets.__version__}"
    print(f"{len(documents):,} documents, {megabytes:.1f} MB, {len(vocabulary):,} tokens")
    print(f"{libraries}, {platform.machine()}")
    print(f"MB per second of processor time, median of {rounds} turns, with the slowest and the fastest")
    print()
    for name, taken in seconds.items():
        times = best["largebatch data tokenize"] / best[name]
        beside = "" if times == 1 else f"   ours is {times:.1f} times as fast"
        print(f"{name:28} {best[name]:6.2f}   ({megabytes / max(taken):.2f} to {megabytes / min(taken):.2f}){beside}")


if __name__ == "__main__":
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else ROUNDS)
