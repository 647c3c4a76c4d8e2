"""How a model reads captions and frames, and the names of what is stored for ways other than the student's."""

from __future__ import annotations

from teachclip.data.annotations.records import Split
from teachclip.data.batches import Tokenized
from teachclip.data.video.transform import FrameTransform
from teachclip.models.preprocessing import Preprocessing


def tokenize(split: Split, how: Preprocessing, *, vocab_size: int | None = None) -> Tokenized:
    """Return the captions of a split as token ids."""
    return Tokenized.from_captions(
        split.captions,
        how.tokenizer,
        max_tokens=how.max_tokens,
        vocab_size=vocab_size,
        pad_id=how.pad_id,
        pad_to=how.pad_to,
    )


def frames_folder(transform: FrameTransform) -> str:
    """Return the name of a store of frames, such as frames-384-stretch; the student's is called frames."""
    parts = ["frames", str(transform.size), transform.resize]
    parts += [transform.resample] if transform.resample != "bicubic" else []
    parts += [f"of-{transform.scale_to}"] if transform.scale_to not in (None, transform.size) else []
    return "-".join(parts)
