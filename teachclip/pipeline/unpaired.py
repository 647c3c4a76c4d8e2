"""Videos without captions and captions without videos, more to draw frame sets from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from teachclip.console import log
from teachclip.data.annotations.files import file_facts, find_videos
from teachclip.data.annotations.records import Split, Video
from teachclip.data.annotations.uncaptioned import as_captions, plain_text, read_texts
from teachclip.errors import DataError, RecipeError
from teachclip.pipeline.frames import build_frames, hashes_file
from teachclip.pipeline.workspace import Workspace
from teachclip.recipe.schema import Recipe
from teachclip.scorer import teacher_traits
from teachclip.scoring.inputs import Inputs, JoinedInputs
from teachclip.store.files import file_hash
from teachclip.store.fingerprint import fingerprint_of

NAME = "unpaired"


@dataclass(frozen=True)
class Unpaired:
    """More videos or captions for frame sets alone, as a split of its own without pairs.

    What was not given is one video or text of the training split, which is never drawn. `work` reads its frames.
    Texts and videos for all terms of the loss are `data.texts` and `data.uncaptioned`.
    """

    work: Workspace
    split: Split
    has_videos: bool
    has_captions: bool
    training_videos: int

    def content(self) -> dict[str, Any]:
        """Return the hash of what is drawn from."""
        return {NAME: fingerprint_of(self.work.provenance(self.split, self.work.backbone, {}))}

    def join(self, inputs: Inputs, model: Any, *, encoders: str) -> Inputs:
        """Return `inputs` of the training split and, behind them, those of these videos and captions.

        `model` reads them: its `clip` if the inputs are stored features (`encoders` frozen), itself otherwise.
        """
        unpaired: Inputs
        if encoders == "frozen":
            clip = teacher_traits(model).clip or model
            unpaired = self.work.feature_inputs(self.split, clip)
        else:
            unpaired = self.work.inputs_for(model, self.split)
        repeats = inputs.video_count // self.training_videos  # as often as a training video with its views
        views = [unpaired] * repeats
        return JoinedInputs(
            [inputs, unpaired] if self.has_captions else [inputs], [inputs, *views] if self.has_videos else [inputs]
        )


def build_unpaired(work: Workspace) -> Unpaired | None:
    """Read and decode the unpaired videos and captions of a recipe, or return None if it has none.

    A video that cannot be read is excluded, by name, and so are videos and captions that are among those to validate
    or test on. Raises DataError if there is nothing to read at all.
    """
    term, train = work.recipe.losses.frame_sets, work.catalog.train
    if term.videos is None and term.captions is None:
        return None
    videos = list(train.videos[:1])
    if term.videos is not None:
        videos = _without_held_out(work, find_videos(term.videos))
        frames = work.recipe.frames.model_copy(update={"temporal_augmentation": 1})
        recipe, every = work.recipe.model_copy(update={"frames": frames}), tuple(videos)

        def decode(transform: Any, name: str) -> Any:
            return build_frames(recipe, work.processes, every, (), transform, f"{name}-{NAME}")

        decoded = decode(work.processor.transform, "frames")
        for video_id, reason in sorted(decoded.failures.items()):
            log(f"excluded {video_id}: {reason}")
        videos = [video for video in videos if video.id not in decoded.failures]
        if not videos:
            raise DataError(f"{term.videos}: no video can be read")
        work = replace(work, recipe=recipe, frames=decoded, decode=decode, _tokenized={}, _other_frames={})
    texts = [train.captions[0].text]
    if term.captions is not None:
        texts = _other_captions(work, term.captions)
    split = Split(NAME, tuple(videos), as_captions(texts))
    log(f"{NAME}: {len(videos) if term.videos else 0} videos, {len(texts) if term.captions else 0} captions")
    return Unpaired(work, split, term.videos is not None, term.captions is not None, len(train.videos))


def check_unpaired(recipe: Recipe) -> None:
    """Raise DataError, before anything is decoded, if unpaired videos or captions are not there."""
    term = recipe.losses.frame_sets
    if recipe.losses.uses_frame_sets and term.videos is not None:
        find_videos(term.videos)
    if recipe.losses.uses_frame_sets and term.captions is not None:
        read_texts(term.captions)


def _without_held_out(work: Workspace, files: dict[str, Path]) -> list[Video]:
    """Return the unpaired videos but for those whose content is that of a video to validate or test on."""
    held_out = [video for split in _held_out(work) for video in split.videos]
    videos = [Video(f"{NAME}/{name}", path) for name, path in files.items()]
    hashes = hashes_file(work.recipe)
    limit = work.recipe.frames.time_limit
    known, found = (file_facts(part, hashes, progress=False, time_limit=limit) for part in (held_out, videos))
    seen = {fact.get("sha256") for fact in known.values()} - {None}
    kept = [video for video in videos if found[video.id].get("sha256") not in seen]
    if len(kept) < len(videos):
        log(f"excluded {len(videos) - len(kept)} of {len(videos)} {NAME} videos: they are in validation or test")
    if not kept:
        raise DataError(
            f"{work.recipe.losses.frame_sets.videos} holds no other videos than those to validate or test on"
        )
    return kept


def _held_out(work: Workspace) -> list[Split]:
    return [split for split in work.catalog.splits if split is not work.catalog.train]


def _other_captions(work: Workspace, path: Path) -> list[str]:
    """Return the unpaired captions but for those to validate or test on, in whatever case they are written."""
    texts = read_texts(path)
    seen = {plain_text(caption.text) for split in _held_out(work) for caption in split.captions}
    kept = [text for text in texts if plain_text(text) not in seen]
    if len(kept) < len(texts):
        log(f"excluded {len(texts) - len(kept)} of {len(texts)} {NAME} captions: they are in validation or test")
    if not kept:
        raise DataError(f"{path} holds no other captions than those to validate or test on")
    return kept


def check_unseen(recipe: Recipe, test: Split) -> None:
    """Raise RecipeError if texts or videos without the other are of the test split, which a trial does not know."""
    term, data = recipe.losses.frame_sets, recipe.data
    used = recipe.losses.uses_frame_sets
    captions, videos = (term.captions, term.videos) if used else (None, None)
    seen = {plain_text(caption.text) for caption in test.captions}
    for key, path in (("losses.frame_sets.captions", captions), ("data.texts", data.texts)):
        both = [text for text in read_texts(path) if plain_text(text) in seen] if path is not None else []
        if both:
            raise RecipeError(f"{key}: {path} holds {len(both)} test captions: {both[0]!r}")
    same_size: dict[int, set[Path]] = {}
    for path in (video.path for video in test.videos if video.path.exists()):
        same_size.setdefault(path.stat().st_size, set()).add(path)
    for key, folder in (("losses.frame_sets.videos", videos), ("data.uncaptioned", data.uncaptioned)):
        for path in find_videos(folder).values() if folder is not None else ():
            if any(file_hash(path) == file_hash(other) for other in same_size.get(path.stat().st_size, ())):
                raise RecipeError(f"{key}: {path} is a test video; give a folder of other videos")
