"""Videos without captions and captions without videos, for set distillation to draw from beside training pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from teachclip.commands.cli import say
from teachclip.commands.frame_sources import build_frames
from teachclip.commands.workspace import Workspace
from teachclip.data.catalog import Caption, Split, Video
from teachclip.data.formats.tables import read_lines
from teachclip.data.locate import find_videos
from teachclip.errors import DataError
from teachclip.fingerprint import fingerprint_of
from teachclip.inputs import Inputs
from teachclip.joined_inputs import JoinedInputs

NAME = "unpaired"


@dataclass(frozen=True)
class Unpaired:
    """More videos or captions, as a split of its own.

    Every video of a split needs a caption and every caption a video: what was not given is filled up from the
    training split and never drawn. `work` reads its frames.
    """

    work: Workspace
    split: Split
    has_videos: bool
    has_captions: bool

    def content(self) -> dict[str, Any]:
        """Return the hash of what is drawn from."""
        return {NAME: fingerprint_of(self.work.circumstances(self.split, self.work.backbone, {}))}

    def join(self, inputs: Inputs, model: Any, *, towers: str) -> Inputs:
        """Return `inputs` of the training split and, behind them, those of these videos and captions.

        `model` reads them: its `clip` if the inputs are stored features (`towers` frozen), itself otherwise.
        """
        own: Inputs
        if towers == "frozen":
            clip: nn.Module = getattr(model, "clip", model)
            own = self.work.feature_inputs(self.split, clip)
        else:
            own = self.work.inputs_for(model, self.split)
        return JoinedInputs(
            [inputs, own] if self.has_captions else [inputs], [inputs, own] if self.has_videos else [inputs]
        )


def build_unpaired(work: Workspace) -> Unpaired | None:
    """Read and decode the unpaired videos and captions of a recipe, or return None if it has none.

    A video that cannot be read is left out, by name. Raises DataError if there is nothing to read at all.
    """
    term, train = work.recipe.losses.sets, work.catalog.train
    if term.videos is None and term.captions is None:
        return None
    videos = list(train.videos[:1])
    if term.videos is not None:
        videos = [Video(f"{NAME}/{name}", path) for name, path in find_videos(term.videos).items()]
        suffix = (
            f"{NAME}-{fingerprint_of({'videos': [video.id for video in videos]})[:8]}"  # other videos, other stores
        )
        frames = build_frames(work.recipe, work.processes, videos, (), work.processor.transform, f"frames-{suffix}")
        for video_id, reason in sorted(frames.failures.items()):
            say(f"left out {video_id}: {reason}")
        every, videos = tuple(videos), [video for video in videos if video.id not in frames.failures]
        if not videos:
            raise DataError(f"{term.videos}: no video can be read")

        def decode(transform: Any, name: str) -> Any:
            return build_frames(work.recipe, work.processes, every, (), transform, f"{name}-{suffix}")

        work = replace(work, frames=frames, decode=decode, _tokenized={}, _other_frames={})
    texts = [caption.text for caption in train.captions]
    if term.captions is not None:
        texts = _read_captions(term.captions)
    split = _as_split(videos, texts)
    say(f"{NAME}: {len(videos) if term.videos else 0} videos, {len(texts) if term.captions else 0} captions")
    return Unpaired(work, split, term.videos is not None, term.captions is not None)


def _read_captions(path: Path) -> list[str]:
    lines = [line.text.strip() for line in read_lines(path)]
    if not lines:
        raise DataError(f"{path} has no captions; expected one per line")
    return lines


def _as_split(videos: Sequence[Video], texts: Sequence[str]) -> Split:
    """Return a split with all videos and all texts, dealt out in turn; the shorter of both begins again."""
    count = max(len(videos), len(texts))
    rows = sorted(range(count), key=lambda row: row % len(videos))
    captions = [Caption(f"{NAME}:{row}", videos[row % len(videos)].id, texts[row % len(texts)]) for row in rows]
    name = _name({"videos": [video.id for video in videos], "texts": list(texts)})
    return Split(name, tuple(videos), tuple(captions))


def _name(content: Mapping[str, Any]) -> str:
    """Return the name of a store: other videos or captions, another store."""
    return f"{NAME}-{fingerprint_of(content)[:8]}"
