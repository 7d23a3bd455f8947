"""WordPiece, as BERT's: a vocabulary is read or trained, and words become numbers, by Hugging Face's ``tokenizers``.

What its normaliser, its pre-tokenizer and WordPiece do, they do to what stands between two spaces, and between
two signs of punctuation. So a word is encoded once, and its numbers are remembered.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from largebatch.data.text.pack import SPECIAL
from largebatch.errors import UserError
from largebatch.recipes import paths

UNKNOWN = "[UNK]"
LEAST, MOST = 64, 2**24  # tokens of a vocabulary
LARGEST_ALPHABET = 1000  # characters, as BERT's trainer has it
LEAST_OFTEN = 2  # a pair of tokens becomes one
SAMPLE_BYTES = 100 * 10**6  # of the sources, that a vocabulary is trained on
LONGEST_WORD = 100  # characters; a longer one is [UNK], as in BERT
REMEMBERED = 2**20  # words
_GROUP_CHARACTERS = 2**20  # are encoded at once, whatever the length of a document
_PARTS = re.compile(r"[!-/:-@\[-`{-~]|[^!-/:-@\[-`{-~]+").findall  # of a word: ASCII's punctuation stands alone
_END = "\n"  # of a document: no line holds it
_SENTENCE_END = re.compile(r"(?<=[.!?]) +")


class EncodedText(NamedTuple):
    """Documents end to end, each closed by [SEP]; where each ends, and where segments begin."""

    tokens: np.ndarray
    ends: np.ndarray
    segments: np.ndarray


def tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError("text is tokenized by tokenizers: pip install 'largebatch[text]'") from None
    return tokenizers


def tokenizer_of(vocabulary: list[str], cased: bool) -> Any:
    """BERT's: the special tokens are no text, and no text becomes one of them."""
    library = tokenizers()
    numbers = {token: number for number, token in enumerate(vocabulary)}
    model = library.models.WordPiece(numbers, unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD)
    return _with_parts(library.Tokenizer(model), cased)


def _with_parts(tokenizer: Any, cased: bool) -> Any:
    library = tokenizers()
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    return tokenizer


class Encoder:
    """Documents to numbers; words that were met are remembered, up to a number of them."""

    def __init__(self, vocabulary: list[str], cased: bool, remembered: int = REMEMBERED) -> None:
        self.tokenizer = tokenizer_of(vocabulary, cased)
        self.dtype = np.dtype(dtype_of(len(vocabulary))).newbyteorder("<")
        self.remembered = remembered
        self._always = {"": b"", _END: self._bytes([vocabulary.index("[SEP]")])}
        self._words = dict(self._always)

    def encode(self, documents: list[list[str]]) -> EncodedText:
        """Of their lines: a segment is a line, or a sentence within it, that leaves a token; so is a document."""
        tokens: list[bytes] = []
        ends: list[int] = []
        segments: list[int] = []
        count = end = 0
        for group in _groups(documents):
            words = [sentence.split(" ") for sentence in group]
            self._learn(words)
            known = self._words.__getitem__
            for sentence, of_sentence in zip(group, words, strict=True):
                found = b"".join(map(known, of_sentence))
                if sentence is _END:
                    if count == end:
                        continue
                    ends.append(end := count + 1)
                elif found:
                    segments.append(count)
                count += len(found) // self.dtype.itemsize
                tokens.append(found)
        return EncodedText(
            np.frombuffer(b"".join(tokens), self.dtype), np.array(ends, np.int64), np.array(segments, np.int64)
        )

    def _learn(self, sentences: list[list[str]]) -> None:
        met = set(itertools.chain.from_iterable(sentences))
        if len(self._words) + len(met) > self.remembered:
            self._words = dict(self._always)
        new = {word: _PARTS(word) for word in met.difference(self._words)}
        parts = list(set(itertools.chain.from_iterable(new.values())).difference(self._words))
        for part, encoded in zip(parts, self.tokenizer.encode_batch_fast(parts, add_special_tokens=False), strict=True):
            self._words[part] = self._bytes(encoded.ids)
        for word, of_word in new.items():
            self._words[word] = b"".join(map(self._words.__getitem__, of_word))

    def _bytes(self, numbers: list[int]) -> bytes:
        return struct.pack(f"<{len(numbers)}{self.dtype.char}", *numbers)


def _groups(documents: Iterable[list[str]]) -> Iterator[list[str]]:
    """Their sentences, and what stands for the end of each document, of about a million characters at a time."""
    group: list[str] = []
    characters = 0
    for lines in documents:
        for line in lines:
            group += _SENTENCE_END.split(line.replace("\t", " ").replace("\r", " "))
            characters += len(line)
            if characters > _GROUP_CHARACTERS:
                yield group
                group, characters = [], 0
        group.append(_END)
    yield group


def dtype_of(vocabulary_size: int) -> Literal["uint16", "uint32"]:
    return "uint16" if vocabulary_size <= 2**16 else "uint32"


# --- vocabularies -----------------------------------------------------------------------------------------------------


def vocabulary_text(vocabulary: list[str]) -> str:
    return "".join(f"{token}\n" for token in vocabulary)


def vocabulary_asked(given: str) -> int | list[str]:
    """``8192``: so many tokens are to be trained; ``vocab.txt``: these."""
    if not given.lstrip("-").isdecimal():
        return read_vocabulary(Path(paths.expanded("--vocabulary", given)))
    if not LEAST <= int(given) <= MOST:
        raise UserError(f"--vocabulary {given} is out of range; {LEAST} to {MOST:,} tokens, or a file")
    return int(given)


def read_vocabulary(path: Path) -> list[str]:
    """A token a line, as BERT's vocab.txt."""
    try:
        content = path.read_bytes()
    except OSError as reason:
        raise UserError(
            f"--vocabulary {path} cannot be read: {reason.strerror}; a file or a number of tokens"
        ) from None
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError as problem:
        raise UserError(f"--vocabulary {path} is no UTF-8: byte {problem.start:,}") from None
    vocabulary = [line.removesuffix("\r") for line in lines[: len(lines) - (lines[-1] == "")]]
    if missing := [token for token in SPECIAL if token not in vocabulary]:
        raise UserError(f"--vocabulary {path} has no {', '.join(missing)}; BERT's special tokens are needed")
    token, count = Counter(vocabulary).most_common(1)[0]
    if count > 1:
        raise UserError(f"--vocabulary {path} holds {token!r} {count} times; a line is the number of one token")
    return vocabulary


def special_numbers(vocabulary: list[str]) -> dict[str, int]:
    return {token: vocabulary.index(token) for token in SPECIAL}


def sha256_of(vocabulary: list[str]) -> str:
    return hashlib.sha256(vocabulary_text(vocabulary).encode()).hexdigest()


def train_vocabulary(sample: Callable[[], Iterable[str]], size: int, cased: bool) -> list[str]:
    """At most ``size`` tokens, the special ones first; the same for the same ``sample``, which is read twice.

    ``tokenizers`` numbers characters in the order of a hash table, and breaks ties by those numbers. So the alphabet is
    counted here, and handed over in an order of its own.
    """
    library = tokenizers()
    tokenizer = _with_parts(library.Tokenizer(library.models.WordPiece(unk_token=UNKNOWN)), cased)
    alphabet = _alphabet(tokenizer, sample(), min(LARGEST_ALPHABET, (size - len(SPECIAL)) // 4))
    within = [f"##{character}" for character in alphabet if _continues_words(tokenizer, character)]
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=LEAST_OFTEN,
        special_tokens=[*SPECIAL, *alphabet, *within],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(), trainer)
    numbers: dict[str, int] = tokenizer.get_vocab()
    return sorted(numbers, key=lambda token: numbers[token])


def _alphabet(tokenizer: Any, texts: Iterable[str], most: int) -> list[str]:
    """The most frequent characters of normalised words, and of equally frequent ones the first, in Unicode's order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(tokenizer.normalizer.normalize_str(text))
    characters = [character for character in counts if not character.isspace()]
    return sorted(sorted(characters, key=lambda character: (-counts[character], character))[:most])


def _continues_words(tokenizer: Any, character: str) -> bool:
    """Unless it is a word of its own wherever it stands, as a comma is."""
    words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(f"a{character}"))
    return len(words) == 1
