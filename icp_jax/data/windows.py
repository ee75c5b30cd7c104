"""Windows of tokens: random ones for calibration, consecutive ones for evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from icp_jax.config import CalibrationConfig
from icp_jax.data.corpus import Corpus, Encode, log
from icp_jax.data.files import load_corpus
from icp_jax.data.tokenizer import Slowly
from icp_jax.errors import InputError
from icp_jax.phases import Progress

MAX_WINDOW = 2048  # the usual window for models with a longer context
LONG = 1 << 20  # longer texts (in characters) are tokenized only around the drawn windows
BYTES = 4  # maximum UTF-8 bytes, and so tokens, per character
USUAL = 8  # upper bound on the mean characters per token
EDGE = 8  # tokens dropped at each end of a cut text, which the cut may have changed


def window(seq_len: int | None, context: int) -> int:
    """The window length: `seq_len`, or the model's context up to 2048. Raises InputError."""
    if seq_len is not None and not 2 <= seq_len <= context:
        raise InputError(f"seq_len must be from 2 to the model's context {context}, got {seq_len}")
    return seq_len or min(context, MAX_WINDOW)


def length_of(data: str, seq_len: int | None, context: int) -> int:
    """`window`; if seq_len is unset, rows of a 2-D `.npy` file that fit the context are windows."""
    if seq_len is None and data.endswith(".npy"):
        shape: tuple[int, ...] = ()
        try:
            rows = np.load(Path(data).expanduser(), mmap_mode="r")
            shape = rows.shape if isinstance(rows, np.ndarray) else ()  # or several arrays
        except (OSError, ValueError, EOFError):
            pass  # the reader says what is wrong
        if len(shape) == 2 and 2 <= shape[1] <= context:
            return int(shape[1])
    return window(seq_len, context)


def calibration_tokens(
    config: CalibrationConfig,
    context: int,
    encode: Encode,
    progress: Progress = lambda *event: None,
) -> np.ndarray:
    """Draw calibration windows `[samples, T]` int32 with config.seed.

    Windows of a text do not overlap if it is long enough, unless config.overlap is set.

    Rows of exactly one window are used unchanged. Unset `samples` is 128, or the number of such
    rows if there are fewer. Raises InputError.
    """
    corpus = load_corpus(config.data)
    if corpus.empty:
        log.warning("%s: %d rows are empty", config.data, corpus.empty)
    draw = Draw(config, length_of(config.data, config.seq_len, context), encode, Slowly(progress))
    tokens = draw.rows(corpus) if corpus.rows else None
    if tokens is None and len(corpus.pieces) > 1:
        tokens = draw.documents(corpus)
    return draw.text(corpus) if tokens is None else tokens


class Draw:
    """Draws windows of `length` tokens from a corpus."""

    def __init__(self, config: CalibrationConfig, length: int, encode: Encode, tick: Slowly):
        self.data, self.length, self.encode, self.tick = config.data, length, encode, tick
        self.asked, self.samples, self.overlap = config.samples, config.count, config.overlap
        self.rng = np.random.default_rng(config.seed)

    def documents(self, corpus: Corpus) -> np.ndarray | None:
        """Windows from documents (or rows) that are long enough; None if there are none."""
        found: list[np.ndarray] = []
        least = self.length + (not corpus.rows)
        for i in self.rng.permutation(len(corpus.pieces)):
            piece = corpus.pieces[int(i)]
            if isinstance(piece, str) and BYTES * len(piece) + EDGE < least:
                continue
            ids = self.encode(piece)
            if len(ids) >= least:
                found.append(ids)
                self.tick(len(found), self.samples)
            if len(found) == self.samples:
                break
        if not found:
            return None
        return self._in_turn(found)

    def rows(self, corpus: Corpus) -> np.ndarray | None:
        """Rows of exactly one window; None if there are none, or longer rows."""
        lengths = np.array([len(piece) for piece in corpus.pieces])
        there = np.flatnonzero(lengths == self.length)
        if not len(there) or lengths.max() > self.length:
            return None
        if self.asked is not None and len(there) < self.asked:
            raise InputError(
                f"calibration data {self.data} has {len(there)} rows of {self.length} tokens, but "
                f"{self.asked} samples are asked for: give more, or set calibration.samples to "
                f"{len(there)}"
            )
        if len(there) < self.samples:
            log.warning("%s: using all %d windows", self.data, len(there))
        elif len(there) > self.samples:
            drawn = self.rng.permutation(len(there))[: self.samples]
            there = there[np.sort(drawn)]
        return np.stack([self.encode(corpus.pieces[int(i)]) for i in there])

    def text(self, corpus: Corpus) -> np.ndarray:
        """Windows from anywhere in the joined corpus."""
        texts = [piece for piece in corpus.pieces if isinstance(piece, str)]
        if len(texts) == len(corpus.pieces):
            drawn = self._long(corpus.gap.join(texts))
            if drawn is not None:
                return self._warned(drawn)
        ids = joined(corpus, self.encode)
        if len(ids) < self.length:
            raise InputError(
                f"calibration data {self.data} has {len(ids)} tokens, shorter than one window of "
                f"{self.length}: give more text or a smaller calibration.seq_len"
            )
        return self._in_turn([ids])

    def _long(self, text: str) -> np.ndarray | None:
        """Windows of a very long text, tokenized only around each window; None if it is shorter."""
        width = USUAL * (self.length + 2 * EDGE)
        if len(text) < max(LONG, 2 * self.samples * width):
            return None
        windows = []
        starts = None if self.overlap else self._apart(len(text), width, self.samples)
        for k in range(self.samples):
            start = self._anywhere(len(text), width) if starts is None else int(starts[k])
            ids = self.encode(text[start : start + width])[EDGE:-EDGE]
            if len(ids) < self.length:
                return None  # unusually long tokens: fall back to the whole text
            windows.append(ids[: self.length])
            self.tick(k + 1, self.samples)
        return np.stack(windows)

    def _in_turn(self, found: list[np.ndarray]) -> np.ndarray:
        """A window from each sequence of ids in turn; those of one do not overlap if they fit."""
        starts, overlap = np.empty(self.samples, np.int64), False
        for first, ids in enumerate(found):
            mine = np.arange(first, self.samples, len(found))
            several = len(mine) > 1 and not self.overlap
            if several and len(ids) >= len(mine) * self.length:
                starts[mine] = self._apart(len(ids), self.length, len(mine))
            else:
                starts[mine] = -1
                overlap |= several
        for k in np.flatnonzero(starts < 0):
            starts[k] = self._anywhere(len(found[k % len(found)]), self.length)
        windows = [found[k % len(found)][s : s + self.length] for k, s in enumerate(starts)]
        return self._warned(np.stack(windows), sum(map(len, found)), overlap)

    def _anywhere(self, size: int, width: int) -> int:
        return int(self.rng.integers(size - width + 1))

    def _apart(self, size: int, width: int, count: int) -> np.ndarray:
        """Random starts of `count` windows that do not overlap, in random order."""
        gaps = np.sort(self.rng.integers(size - count * width + 1, size=count))
        return self.rng.permutation(gaps + width * np.arange(count))

    def _warned(
        self, windows: np.ndarray, tokens: int | None = None, overlap: bool = False
    ) -> np.ndarray:
        """Return the windows; log a warning if too few tokens made some equal, or overlap."""
        if tokens is None or tokens < windows.size:
            distinct = len(np.unique(windows, axis=0))
            if distinct < len(windows):
                few = "" if tokens is None else f" has only {tokens} tokens:"
                log.warning(
                    "%s:%s %d of %d windows are distinct", self.data, few, distinct, len(windows)
                )
                return windows
        if overlap:
            log.warning(
                "%s: windows overlap: %d windows of %d tokens are drawn from %d",
                self.data, *windows.shape, tokens,
            )  # fmt: skip
        return windows


def joined(corpus: Corpus, encode: Encode) -> np.ndarray:
    """Join a corpus into one sequence of ids."""
    texts = [piece for piece in corpus.pieces if isinstance(piece, str)]
    if texts and len(texts) == len(corpus.pieces):
        return encode(corpus.gap.join(texts))
    return np.concatenate([encode(piece) for piece in corpus.pieces] or [np.empty(0, np.int32)])


def evaluation_windows(data: str, seq_len: int | None, context: int, encode: Encode) -> np.ndarray:
    """Join a corpus and cut it into windows `[windows, T]` int32 that do not overlap."""
    length, corpus = length_of(data, seq_len, context), load_corpus(data, evaluation=True)
    ids = joined(corpus, encode)
    count = len(ids) // length
    if count == 0:
        raise InputError(
            f"evaluation data {data} has {len(ids)} tokens, shorter than one window of {length}: "
            "give more text or a smaller seq_len"
        )
    if corpus.empty:
        log.warning("%s: %d rows are empty", data, corpus.empty)
    count = min(count, corpus.limit or count)
    return ids[: count * length].reshape(count, length)
