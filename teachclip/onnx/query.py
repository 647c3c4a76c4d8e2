"""Texts to vectors with tokenizers and onnxruntime alone: `python query.py "a red circle"` prints JSON.

This file stands alone beside `text.onnx`, `tokenizer.json` and `config.json`; it needs numpy, tokenizers and
onnxruntime, and neither PyTorch nor teachclip. In Python: `from query import encode; encode(["a red circle"])`.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

BATCH = 64
"""Texts that are encoded at once."""


class ArtefactError(Exception):
    """The folder is unfinished or damaged; the message is one line."""


class TextTokenizer:
    """Cuts texts into tokens as the student's processor does.

    folder: with `tokenizer.json`. settings: `text` in its `config.json`. Raises ArtefactError if it is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        try:
            self.pad_to, self.pad_id, self.unknown_id = (settings[key] for key in ("pad_to", "pad_id", "unknown_id"))
            self.backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.backend.encode_special_tokens = settings["split_special_tokens"]
            self.backend.no_padding()
            self.backend.enable_truncation(settings["max_tokens"], direction=settings["truncation_side"])
        except Exception as error:  # tokenizers raises bare exceptions
            raise ArtefactError(f"{folder}: its tokenizer cannot be loaded: {one_line(error)}") from error

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return `input_ids` and `attention_mask`, both (texts, tokens) int64, cut and padded as in training.

        Raises ValueError for a text that is not a string, is empty or has unknown words.
        """
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"text {number} is {text!r}, expected a text that is not empty")
        try:
            encoded = [encoding.ids for encoding in self.backend.encode_batch(list(texts))]
        except TypeError as error:  # half of a character, as a wrong decoding leaves it
            raise ValueError(f"a text cannot be encoded as UTF-8: {one_line(error)}") from error
        for text, ids in zip(texts, encoded, strict=True):
            if self._unknown(ids) > self._allowed:
                words = [word for word in text.split() if self._is_unknown(word)] or [text]
                raise ValueError(f"text {text[:60]!r}: not in the vocabulary: {', '.join(words[:5])}")
        width = self.pad_to or max(map(len, encoded), default=0)
        input_ids = np.full((len(encoded), width), self.pad_id, dtype=np.int64)
        mask = np.zeros_like(input_ids)
        for row, tokens in enumerate(encoded):
            input_ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return input_ids, mask

    def _unknown(self, ids: Sequence[int]) -> int:
        return 0 if self.unknown_id is None else list(ids).count(self.unknown_id)

    @functools.cached_property
    def _allowed(self) -> int:
        """In CLIP the end-of-text token is also the unknown token: an empty text has one."""
        return self._unknown(self.backend.encode("").ids)

    def _is_unknown(self, word: str) -> bool:
        return self.unknown_id in self.backend.encode(word, add_special_tokens=False).ids


class TextEncoder:
    """The text tower of a student.

    folder: with `config.json`, `tokenizer.json` and `text.onnx`. threads: of onnxruntime; 0: one per core.
    providers: of onnxruntime, in the order of preference. Raises ArtefactError if a file is missing or damaged.
    """

    def __init__(
        self,
        folder: str | Path = Path(__file__).parent,
        *,
        threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_bytes())
            self.dim, settings = config["dim"], config["text"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtefactError(f"{folder}: config.json cannot be read: {one_line(error)}") from error
        self.tokenizer = TextTokenizer(folder, settings)
        self.session = open_session(folder / "text.onnx", threads=threads, providers=providers)
        self.inputs = [node.name for node in self.session.get_inputs()]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of texts: (texts, dim) float32, L2-normalised. Raises ValueError as the tokenizer."""
        if not len(texts):
            return np.empty((0, self.dim), dtype=np.float32)
        return self.run(*self.tokenizer(texts))

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return the vectors of token ids: (texts, dim) float32. A tower that needs no mask gets none."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        (vectors,) = self.session.run(None, {name: given[name] for name in self.inputs})
        return np.asarray(vectors)


def open_session(file: Path, *, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """Return an onnxruntime session of a file. Raises ArtefactError if it is missing or damaged."""
    if not file.is_file():
        raise ArtefactError(f"{file.parent}: it has no {file.name}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads  # errors are raised, not printed
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=list(providers))
    except Exception as error:  # onnxruntime's errors have no class of their own
        raise ArtefactError(f"{file}: cannot be loaded: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """Return the first 300 characters of an error's message on one line."""
    if isinstance(error, FileNotFoundError):
        return f"no such file: {error.filename}"
    text = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return text[:300] or type(error).__name__


@functools.cache
def _encoder() -> TextEncoder:
    return TextEncoder()


def encode(texts: str | Sequence[str]) -> np.ndarray:
    """Return the vectors of texts: (texts, dim) float32, L2-normalised; the dot product with a video's is the score.

    Raises ArtefactError if this folder is damaged, ValueError for a text that is empty or has unknown words.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    starts = range(0, max(len(texts), 1), BATCH)
    return np.concatenate([_encoder().encode(texts[start : start + BATCH]) for start in starts])


def main(texts: Sequence[str]) -> int:
    """Print the vector of each text as a line of JSON."""
    if not texts:
        print('usage: python query.py "a red circle" [more texts]', file=sys.stderr)
        return 2
    try:
        for vector in encode(texts):
            print(json.dumps([float(f"{value:.9g}") for value in vector]))  # 9 digits tell a float32 exactly
    except (ArtefactError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
