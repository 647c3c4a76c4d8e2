"""Keep the texts of a bank that occur in the videos of a recipe, as its teacher sees them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from teachclip.console import log
from teachclip.data.annotations.records import Split
from teachclip.data.annotations.uncaptioned import as_captions, plain_text, read_texts
from teachclip.errors import RecipeError
from teachclip.pipeline.build import without_text_backbone
from teachclip.pipeline.relevance import teacher_relevance
from teachclip.pipeline.teachers import check_teachers, open_teachers
from teachclip.pipeline.workspace import build_workspace
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.store.files import make_folder, write_atomic
from teachclip.texts.bank import bank
from teachclip.texts.captioner import written_texts
from teachclip.texts.names import distinct, texts_of_files
from teachclip.texts.subtitles import subtitles_of
from teachclip.training.distributed import build_accelerator, processes_of

ALIKE = 0.5
"""Two texts of a video that share a larger part of their words are one too many."""

BLOCK_NUMBERS = 2**24
"""Scores that are in memory at a time."""


def suggest_texts(
    recipe: RecipeSource,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    most: int = 2000,
    per_video: int = 20,
    captioner: str | None = None,
) -> Path:
    """Write the texts that a recipe's first teacher finds in its training videos, one per line, to `out`.

    Candidates are the recipe's `data.texts`, subtitles beside the videos, the names of files and folders, tags, the
    bank of everyday texts, and what a `captioner` writes about frames of these videos (a vision-language model, see
    `teachclip.texts.captioner`): the teacher decides which of them are kept. A video proposes `per_video` texts, see
    `top_texts`; the best of each video come first, then the second best, up to `most` texts. Captions of validation
    and test are no candidates. What is computed is stored: `distill` takes it from there. `out`: by default
    `suggested_texts.txt` beside the recipe's stores. Returns its path. Raises RecipeError if the recipe has no
    teacher that encodes texts and videos.
    """
    recipe = without_text_backbone(load_recipe(recipe, overrides))
    accelerator = build_accelerator()
    teachers = open_teachers(recipe, accelerator.device)
    handle = next((handle for handle in teachers.values() if not handle.reads_relevance), None)
    if handle is None:
        raise RecipeError(f"{recipe.name}: texts suggest needs a teacher that encodes texts and videos")
    check_teachers(recipe, teachers)
    work = build_workspace(recipe, processes_of(accelerator), accelerator.device, teachers=teachers)
    train, others = work.catalog.train, [split for split in work.catalog.splits if split is not work.catalog.train]
    held_out = {plain_text(text.text) for split in others for text in split.captions if text.video_id}
    own = read_texts(recipe.data.texts) if recipe.data.texts is not None else []
    files = {video.id: video.path for video in train.videos}
    said = [item.text for item in subtitles_of(files)]
    names = texts_of_files(recipe.data.videos, files)
    written = written_texts(work, captioner) if captioner is not None else []
    texts = [text for text in distinct([*own, *written, *said, *names, *bank()]) if plain_text(text) not in held_out]
    split = Split("train", train.videos, as_captions(texts))
    catalog = replace(work.catalog, train=split)
    work = replace(work, catalog=catalog, _tokenized={})
    store = teacher_relevance(work, handle)
    step = max(1, BLOCK_NUMBERS // len(split.videos))
    scores = np.concatenate(
        [
            np.asarray(store.read("video_text", slice(start, start + step)), dtype=np.float32)
            for start in range(0, len(texts), step)
        ]
    )
    chosen = top_texts(scores, texts, most=most, per_video=per_video)
    path = Path(os.path.expanduser(out)) if out else recipe.stores.parent / "suggested_texts.txt"
    if work.processes.is_main:
        make_folder(path.parent)
        write_atomic(path, "".join(f"{texts[row]}\n" for row in chosen).encode())
    work.processes.wait()
    log(f"texts:  {len(chosen):,} of {len(texts):,} are in {path}")
    return path


def top_texts(scores: np.ndarray, texts: Sequence[str], *, most: int, per_video: int) -> list[int]:
    """Return rows of texts that occur in videos: in turn the best of each video, then the second best, ...

    A text is as close to a video as its score is above the text's mean over all videos, so that a text which scores
    high everywhere is close to none. Of a video's texts, one that shares more than `ALIKE` of its words with a closer
    one is passed over. `scores`: (texts, videos). Returns at most `most` rows, each once.
    """
    close = scores - scores.mean(axis=1, keepdims=True)
    words = [frozenset(re.findall(r"\w+", text.casefold())) - _SMALL for text in texts]
    proposals = [list(_different(np.argsort(-column, kind="stable"), words, per_video)) for column in close.T]
    found: dict[int, None] = {}
    for place in range(per_video):
        for proposal in proposals:
            if place < len(proposal) and len(found) < most:
                found[proposal[place]] = None
    return list(found)


_SMALL = frozenset(["a", "an", "the", "of", "in", "on", "at", "by", "to", "and", "is", "its", "with", "for", "from"])


def _different(order: np.ndarray, words: Sequence[frozenset[str]], count: int) -> Iterator[int]:
    """Yield at most `count` rows in this order whose texts differ from those yielded before."""
    taken: list[frozenset[str]] = []
    for row in order.tolist():
        mine = words[row]
        if all(len(mine & other) <= ALIKE * len(mine | other) for other in taken):
            taken.append(mine)
            yield row
        if len(taken) == count:
            return
