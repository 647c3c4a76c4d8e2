"""The data of a recipe, read, decoded and precomputed: what all commands start from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import CLIPModel

from teachclip.commands.build import (
    build_catalog,
    build_clip,
    build_plan,
    build_processor,
    build_selection,
    build_teacher,
)
from teachclip.commands.cli import say
from teachclip.data.batches import Tokenized
from teachclip.data.catalog import Catalog, Split, require_readable
from teachclip.data.frames import FrameStore, build_frame_store
from teachclip.errors import DataError
from teachclip.fingerprint import fingerprint_of
from teachclip.inputs import FeatureInputs, Inputs, PixelInputs
from teachclip.models.mean_pooling import ClipFeatures
from teachclip.models.processing import StudentProcessor
from teachclip.precompute import (
    architecture_hash,
    store_relevance,
    store_scorer_tokens,
    verify_relevance,
    weights_hash,
)
from teachclip.processes import Processes
from teachclip.recipe import Recipe
from teachclip.recipe import Teacher as TeacherSection
from teachclip.scorer import Teacher
from teachclip.store import ArrayStore


@dataclass(frozen=True)
class Workspace:
    """The data of a recipe, read and decoded: what all commands start from."""

    recipe: Recipe
    catalog: Catalog
    frames: FrameStore
    processor: StudentProcessor
    clip: CLIPModel
    processes: Processes
    device: torch.device
    _tokenized: dict[str, Tokenized] = field(default_factory=dict, repr=False)

    def split(self, name: str) -> Split:
        """Return a split by name. Raises DataError if the data has none of that name."""
        for split in self.catalog.splits:
            if split.name == name:
                return split
        names = ", ".join(split.name for split in self.catalog.splits)
        raise DataError(f"{self.recipe.name}: the data has no {name} split; it has: {names}")

    def selection_split(self) -> Split:
        """Return the split that checkpoints are selected on: validation, or test where that is written out."""
        return build_selection(self.recipe, self.catalog)

    def stamp(self, **values: Any) -> dict[str, Any]:
        """Return the head of a results file: what was evaluated and how it was chosen."""
        return {
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
            "selected_on": self.recipe.data.select_on,
            "left_out": dict(self.catalog.left_out),
            **values,
        }

    def pixel_inputs(self, split: Split) -> PixelInputs:
        """Return token ids and decoded frames of a split."""
        return PixelInputs(
            tokenized=self._tokenize(split),
            frames=self.frames,
            frame_rows=self.frames.rows_of(video.id for video in split.videos),
            mean=torch.tensor(self.processor.mean),
            std=torch.tensor(self.processor.std),
        )

    def _tokenize(self, split: Split) -> Tokenized:
        if split.name not in self._tokenized:
            found = Tokenized.from_captions(
                split.captions,
                self.processor.tokenizer,
                max_tokens=self.recipe.text.max_tokens,
                vocab_size=self.clip.config.text_config.vocab_size,
            )
            if found.unknown_count:
                say(f"{split.name}: {found.unknown_count} captions hold words that are not in the vocabulary")
            self._tokenized[split.name] = found
        return self._tokenized[split.name]

    def circumstances(self, split: Split, model: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
        """Return everything that a model's numbers on a split depend on, for fingerprints."""
        inputs = self.pixel_inputs(split)
        ids, mask = inputs.tokenized.batch(np.arange(inputs.text_count))
        token_hash = hashlib.sha256(ids.numpy().tobytes() + mask.numpy().tobytes()).hexdigest()
        return {
            "model": {
                "class": type(model).__name__,
                "options": options,
                "settings": architecture_hash(model),
                "weights": weights_hash(model),
            },
            "split": split.circumstances(),
            "tokens": {"max_tokens": self.recipe.text.max_tokens, "sha256": token_hash},
            "frames": self.frames.circumstances_of([video.id for video in split.videos]),
            "normalisation": {"mean": list(self.processor.mean), "std": list(self.processor.std)},
        }

    def feature_inputs(self, split: Split, clip: nn.Module) -> FeatureInputs:
        """Return the stored features of frozen towers; compute them if they are not stored yet."""
        scorer = ClipFeatures(clip).to(self.device).eval()
        folder = self.recipe.stores / f"features-{weights_hash(scorer)[:8]}" / split.name
        texts, videos = store_scorer_tokens(
            folder,
            scorer,
            self.pixel_inputs(split),
            circumstances=self.circumstances(split, scorer, {}),
            batch_size=self.recipe.teaching.batch_size,
            device=self.device,
            processes=self.processes,
            label=f"features of {split.name}",
        )
        return FeatureInputs(texts, videos)

    def inputs(self, split: Split, clip: nn.Module, *, towers: str) -> Inputs:
        """Return what a student or teacher with frozen or tuned towers trains on."""
        return self.feature_inputs(split, clip) if towers == "frozen" else self.pixel_inputs(split)

    def _teacher_circumstances(self, section: TeacherSection, teacher: Teacher) -> dict[str, Any]:
        options = {"name": section.name, **section.options}
        return self.circumstances(self.catalog.train, teacher, options)  # type: ignore[arg-type]

    def _teacher_tokens(self, section: TeacherSection, teacher: Teacher) -> tuple[ArrayStore, ArrayStore]:
        return store_scorer_tokens(
            self.recipe.stores / f"tokens-{_slug(section.name)}",
            teacher,
            self.pixel_inputs(self.catalog.train),
            circumstances=self._teacher_circumstances(section, teacher),
            batch_size=self.recipe.teaching.batch_size,
            device=self.device,
            processes=self.processes,
            label=f"{section.name} tokens",
        )

    def content(self, teachers: Sequence[TeacherSection]) -> dict[str, Any]:
        """Return hashes of all that a run trains and selects on: what the recipe's paths led to."""
        splits = {"train": self.catalog.train, "selection": self.selection_split()}
        found = {name: fingerprint_of(self.circumstances(split, self.clip, {})) for name, split in splits.items()}
        for section in teachers:
            teacher = build_teacher(section, self.device)
            found[f"teacher {section.name}"] = fingerprint_of(self._teacher_circumstances(section, teacher))
        return found

    def relevance(self, section: TeacherSection) -> ArrayStore:
        """Return the relevance of a teacher for the training split; compute it if it is not stored yet."""
        teacher = build_teacher(section, self.device)
        texts, videos = self._teacher_tokens(section, teacher)
        return store_relevance(
            self.recipe.stores / f"relevance-{_slug(section.name)}",
            teacher,
            texts,
            videos,
            self.catalog.train.caption_videos,
            circumstances=self._teacher_circumstances(section, teacher),
            precision=self.recipe.teaching.precision,
            device=self.device,
            processes=self.processes,
            label=f"{section.name} relevance",
        )

    def verify(self, section: TeacherSection, store: ArrayStore) -> list[str]:
        """Check a teacher's stores: every checksum, and a sample of rows computed again from the decoded frames."""
        teacher = build_teacher(section, self.device)
        inputs = self.pixel_inputs(self.catalog.train)
        problems = [problem for tokens in self._teacher_tokens(section, teacher) for problem in tokens.verify()]
        problems += store.verify()
        if problems:
            return problems
        return verify_relevance(
            store, teacher, inputs, self.catalog.train.caption_videos, device=self.device, label=section.name
        )


def build_workspace(
    recipe: Recipe,
    processes: Processes,
    device: torch.device,
    *,
    check: Callable[[Catalog], None] | None = None,
) -> Workspace:
    """Read the annotations, decode all videos that are not decoded yet, and leave out what cannot be read.

    `check` may refuse the catalogue before anything is decoded. The main process decodes; the others wait for it.
    """
    catalog = build_catalog(recipe)
    if check is not None:
        check(catalog)
    clip = build_clip(recipe)
    processor = build_processor(recipe)

    def decode() -> FrameStore:
        return build_frame_store(
            sorted(catalog.videos, key=lambda video: video.id),  # the same rows whichever videos are held out
            plan=build_plan(recipe),
            size=recipe.frames.size,
            path=recipe.stores / "frames",
            workers=recipe.frames.workers,
            time_limit=recipe.frames.time_limit,
            progress=processes.is_main,
        )

    frames = _main_first(processes, decode)
    catalog = require_readable(catalog, frames.failures, max_missing=recipe.data.max_missing)
    for video_id, reason in sorted(catalog.left_out.items()):
        say(f"left out {video_id}: {reason}")
    work = Workspace(recipe, catalog, frames, processor, clip, processes, device)
    counts = ", ".join(
        f"{split.name} {len(split.videos)} videos, {len(split.captions)} captions" for split in catalog.splits
    )
    say(f"data: {counts}")
    return work


def _main_first(processes: Processes, work: Callable[[], FrameStore]) -> FrameStore:
    """Run `work` on the main process, then on the others, which find it done."""
    if processes.is_main:
        result = work()
        processes.wait()
        return result
    processes.wait()
    return work()


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
