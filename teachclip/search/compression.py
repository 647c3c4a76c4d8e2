"""Smaller forms of vectors, and how a query is scored against them: fewer dimensions, halves, bytes, bits.

Each form is a rung. The query keeps its floats, except for bits. All of it is numpy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from teachclip.errors import DataError
from teachclip.registry import closest

UNCOMPRESSED = "float32"
"""The rung of the engine itself."""

LEVELS = 256
BLOCK = 16_384
"""Rows that are turned into floats at once."""

WORD = 8
"""Bytes: bits of a row fill whole words, which are compared at once."""


@dataclass(frozen=True)
class Rung:
    """A form of vectors.

    dims: of a row. numbers: float32, float16, int8 or binary. pca: whether the dimensions are the first principal
    components. prefix: whether they are the first numbers of a vector, L2-normalised. best: so many rows are compared
    again by their whole vectors, 0 for none.
    """

    name: str
    dims: int
    numbers: str = "float32"
    pca: bool = False
    prefix: bool = False
    best: int = 0


def rungs(dim: int, prefixes: Iterable[int] = ()) -> list[Rung]:
    """Return the rungs of vectors of `dim` numbers, the uncompressed one first.

    `prefixes`: how many first numbers of a vector were trained as vectors (`student.matryoshka`).
    """
    found = [Rung(name, dim, name) for name in (UNCOMPRESSED, "float16", "int8", "binary")]
    found += [Rung(f"binary+{best}", dim, "binary", best=best) for best in (40, 100)]
    for dims in dict.fromkeys(max(1, dim // share) for share in (2, 4, 8)):
        found += [Rung(f"pca{dims}", dims, pca=True), Rung(f"pca{dims}+int8", dims, "int8", pca=True)]
    for dims in sorted({width for width in prefixes if width < dim}, reverse=True):
        found += [Rung(f"prefix{dims}", dims, prefix=True), Rung(f"prefix{dims}+int8", dims, "int8", prefix=True)]
    return found


def rung_named(name: str, dim: int) -> Rung:
    """Return a rung of vectors of `dim` numbers, also a prefix of any length. Raises DataError for an unknown one."""
    width = re.fullmatch(r"prefix(\d{1,9})(\+int8)?", name)
    known = {rung.name: rung for rung in rungs(dim, [int(width[1])] if width and int(width[1]) else [])}
    if name not in known:
        raise DataError(f"rung {name!r} is unknown{closest(name, known)}; there are: {', '.join(known)}")
    return known[name]


@dataclass(frozen=True)
class Codes:
    """Vectors in the form of a rung.

    matrix: (rows, dims) of the rung's numbers, or (rows, bytes) uint8 of bits. basis: (dims, dim), the principal
    components, and centre: (dim,), the mean vector. low, step: (dims,), the least value and the distance of two
    levels of int8. What a rung does not use is None.
    """

    rung: Rung
    matrix: np.ndarray
    basis: np.ndarray | None = None
    centre: np.ndarray | None = None
    low: np.ndarray | None = None
    step: np.ndarray | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, for files; `from_arrays` is the way back."""
        values = {name: getattr(self, name) for name in ("matrix", "basis", "centre", "low", "step")}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_arrays(cls, rung: Rung, arrays: Mapping[str, np.ndarray]) -> Codes:
        """Return the codes of a rung from its arrays by name."""
        return cls(rung, **arrays)

    @property
    def bytes_per_row(self) -> int:
        """What a row takes in memory and on disk, besides its whole vector in the engine."""
        return int(self.matrix.shape[1] * self.matrix.dtype.itemsize)

    def scores(self, query: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """Return how close each row, or those at `places`, is to a query (dim,): float32 (rows,).

        They are dot products with what the codes stand for: near the cosine. For bits: 1 minus twice the share of the
        dimensions whose signs differ, which orders rows as the Hamming distance does.
        """
        matrix = self.matrix if places is None else self.matrix[places]
        if self.rung.numbers == "binary":
            distances = hamming(matrix, packed_signs(query[None])[0])
            return (1 - 2 * distances / self.rung.dims).astype(np.float32)
        direction, offset = np.asarray(query, np.float32), 0.0
        if self.rung.prefix:
            direction = first_numbers(direction[None], self.rung.dims)[0]
        if self.basis is not None and self.centre is not None:
            offset += float(direction @ self.centre)
            direction = self.basis @ direction
        if self.low is not None and self.step is not None:
            offset += float(direction @ (self.low + LEVELS / 2 * self.step))
            direction = direction * self.step
        found = np.empty(len(matrix), np.float32)
        for start in range(0, len(matrix), BLOCK):
            found[start : start + BLOCK] = matrix[start : start + BLOCK].astype(np.float32, copy=False) @ direction
        return found + np.float32(offset)

    def decoded(self) -> np.ndarray:
        """Return the vectors, or prefixes, that the codes stand for, float32. Raises DataError for bits."""
        if self.rung.numbers == "binary":
            raise DataError("bits stand for no vectors")
        rows = self.matrix.astype(np.float32)
        if self.low is not None and self.step is not None:
            rows = self.low + (rows + LEVELS / 2) * self.step
        if self.basis is not None and self.centre is not None:
            rows = rows @ self.basis + self.centre
        return rows


def encode(rung: Rung, vectors: np.ndarray) -> Codes:
    """Return float32 vectors (rows, dim) in the form of a rung, fitted to these vectors. There must be rows."""
    if rung.numbers == "binary":
        return Codes(rung, packed_signs(vectors))
    rows, basis, centre = vectors, None, None
    if rung.pca:
        basis, centre = principal_components(vectors, rung.dims)
        rows = (vectors - centre) @ basis.T
    if rung.prefix:
        rows = first_numbers(vectors, rung.dims)
    if rung.numbers == "int8":
        matrix, low, step = to_bytes(rows)
        return Codes(rung, matrix, basis, centre, low, step)
    return Codes(rung, rows.astype(rung.numbers), basis, centre)


def principal_components(vectors: np.ndarray, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first principal components (dims, dim) of vectors (rows, dim), and their mean (dim,), float32.

    Rows of the first are the right singular vectors of the centred vectors, largest singular value first.
    """
    centre = vectors.mean(axis=0, dtype=np.float64)
    spread = np.zeros((vectors.shape[1], vectors.shape[1]))
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK] - centre
        spread += block.T @ block
    _, components = np.linalg.eigh(spread)  # ascending
    return components[:, ::-1].T[:dims].astype(np.float32), centre.astype(np.float32)


def first_numbers(vectors: np.ndarray, dims: int) -> np.ndarray:
    """Return the first `dims` numbers of vectors (rows, dim), L2-normalised again."""
    rows = vectors[:, :dims]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, np.finfo(np.float32).tiny)


def to_bytes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows (rows, dims) as int8, and of each dimension the least value and the distance of two levels.

    A value is off by half that distance at most, apart from rounding of float32.
    """
    low = rows.min(axis=0)
    step = np.maximum((rows.max(axis=0) - low) / (LEVELS - 1), np.finfo(np.float32).tiny).astype(np.float32)
    codes = np.empty(rows.shape, np.int8)
    for start in range(0, len(rows), BLOCK):
        levels = np.clip(np.rint((rows[start : start + BLOCK] - low) / step), 0, LEVELS - 1)
        codes[start : start + BLOCK] = levels - LEVELS // 2
    return codes, low.astype(np.float32), step


def packed_signs(vectors: np.ndarray) -> np.ndarray:
    """Return a bit per number of vectors (rows, dim), 1 if it is above 0: uint8 (rows, bytes), in whole words."""
    bits = np.packbits(vectors > 0, axis=1)
    return np.pad(bits, [(0, 0), (0, -bits.shape[1] % WORD)])


def hamming(bits: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return in how many bits rows (rows, bytes) differ from a query (bytes,): int64 (rows,)."""
    words = np.ascontiguousarray(bits).view(np.uint64) ^ np.ascontiguousarray(query).view(np.uint64)
    return np.bitwise_count(words).sum(axis=1, dtype=np.int64)


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the `count` highest scores, highest first; of equal ones the first."""
    if count < len(scores):
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        chosen = np.sort(np.concatenate([above, equal[: count - len(above)]]))
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def nearest(
    codes: Codes,
    query: np.ndarray,
    count: int,
    whole: Callable[[np.ndarray], np.ndarray],
    places: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the `count` rows nearest to a query (dim,), nearest first, and their scores.

    `whole`: returns the whole vectors (places, dim) of places; if the rung rescores, at least its `best` rows are
    compared by them, and all scores are cosines. `places`: of the rows to look at, None for all.
    """
    scores = codes.scores(query, places)
    chosen = highest(scores, max(count, codes.rung.best))
    found = chosen if places is None else places[chosen]
    if not codes.rung.best or not len(found):
        return found[:count], scores[chosen][:count]
    exact = whole(found) @ np.asarray(query, np.float32)
    order = highest(exact, count)
    return found[order], exact[order]
