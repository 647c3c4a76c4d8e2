"""A batch, some pairs at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from teachclip.scorer import Tokens, concat_tokens
from teachclip.scoring.inputs import SWAPPED, Batch

TEXT_INPUTS = ("input_ids", "attention_mask", "text_features")
OF_TEXTS = (*TEXT_INPUTS, *(f"{SWAPPED}{name}" for name in TEXT_INPUTS))
OF_VIDEOS = ("frames", "frame_mask", "frame_features")
OF_ALL = ("mean", "std")
"""What encoders read of a batch: by text, by video, and the same for all."""


def chunks_of(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield what encoders read of a batch, at most `size` pairs at a time, or one video with all of its texts.

    Texts keep the padding of the batch: what is computed of a text does not depend on the chunk.
    """
    videos = len(batch["frame_mask"])
    texts = next(len(batch[name]) for name in OF_TEXTS if name in batch)
    together = texts // videos
    step = max(1, size // together)
    for start in range(0, videos, step):
        of_videos = slice(start, start + step)
        of_texts = slice(start * together, (start + step) * together)
        chunk = {name: batch[name] for name in OF_ALL if name in batch}
        chunk |= {name: batch[name][of_texts] for name in OF_TEXTS if name in batch}
        yield chunk | {name: batch[name][of_videos] for name in OF_VIDEOS if name in batch}


def encode_chunks(encode: Callable[[Batch], Tokens], batch: Batch, size: int | None) -> Tokens:
    """Return `encode(batch)`, computed `size` pairs at a time if it is given."""
    if size is None:
        return encode(batch)
    return concat_tokens([encode(chunk) for chunk in chunks_of(batch, size)])
