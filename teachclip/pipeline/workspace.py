"""The data of a recipe, read, decoded and precomputed: what all commands start from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from teachclip.console import log
from teachclip.data.annotations.catalog import require_readable
from teachclip.data.annotations.files import Overlap, describe_overlaps, file_facts, overlaps
from teachclip.data.annotations.records import Catalog, Split
from teachclip.data.annotations.uncaptioned import without_copies
from teachclip.data.batches import Tokenized
from teachclip.data.frames.views import Frames
from teachclip.data.video.transform import FrameTransform
from teachclip.errors import DataError
from teachclip.models.families import vocabulary_size
from teachclip.models.mean_pooling import EncoderFeatures
from teachclip.models.preprocessing import Preprocessing
from teachclip.models.processing import StudentProcessor
from teachclip.pipeline.build import (
    build_backbone,
    build_catalog,
    build_processor,
    build_selection,
)
from teachclip.pipeline.frames import build_frames, frames_folder, hashes_file
from teachclip.pipeline.teachers import TeacherHandles, check_family, open_teachers
from teachclip.pipeline.text_backbone import student_source
from teachclip.processes import Processes
from teachclip.recipe.schema import Recipe
from teachclip.registry import code_hash
from teachclip.scorer import teacher_traits
from teachclip.scoring.inputs import FeatureInputs, Inputs, PixelInputs, tokenize
from teachclip.scoring.token_store import architecture_hash, store_scorer_tokens, weights_hash


@dataclass(frozen=True)
class Workspace:
    """The data of a recipe, read and decoded: what all commands start from."""

    recipe: Recipe
    catalog: Catalog
    frames: Frames
    processor: StudentProcessor
    backbone: PreTrainedModel
    processes: Processes
    device: torch.device
    teachers: TeacherHandles
    decode: Callable[[FrameTransform, str], Frames] = field(repr=False)
    overlaps: Sequence[Overlap] = ()
    _tokenized: dict[str, Tokenized] = field(default_factory=dict, repr=False)
    _other_frames: dict[str, Frames] = field(default_factory=dict, repr=False)
    _identities: WeakKeyDictionary[nn.Module, dict[type, dict[str, Any]]] = field(
        default_factory=WeakKeyDictionary, repr=False
    )

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
        used = {video.id for video in self.catalog.videos}
        partial = {key: reason for key, reason in self.frames.partially_decoded.items() if key in used}
        return {
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
            "selected_on": self.recipe.data.select_on,
            "excluded": dict(self.catalog.excluded),
            "partial": self.catalog.incomplete_splits,
            "overlaps": describe_overlaps(self.overlaps),
            **({"partially_decoded": partial} if partial else {}),
            **values,
        }

    @property
    def preprocessing(self) -> Preprocessing:
        """What the student reads, and every teacher that does not ask for something else."""
        return self.processor.preprocessing

    @property
    def views(self) -> int:
        """How many views of a training video there are; everything else sees view 0, the frame sampling itself."""
        return self.recipe.frames.temporal_augmentation

    def training_name(self, name: str) -> str:
        """Return the name of a store about the training split, which has a row for each view of a video."""
        return name if self.views == 1 else f"{name}-views{self.views}"

    def inputs_for(self, model: Any, split: Split, views: int = 1) -> PixelInputs:
        """Return token ids and decoded frames of a split as `model` reads them: by its attribute `preprocessing`.

        Without one it reads what the student reads. Raises RecipeError if its encoders then are of another family.
        """
        check_family(model, self.backbone.config)
        return self.pixel_inputs(split, teacher_traits(model).preprocessing, views)

    def pixel_inputs(self, split: Split, preprocessing: Preprocessing | None = None, views: int = 1) -> PixelInputs:
        """Return token ids and decoded frames of a split, for the student if no `preprocessing` is given.

        Frames of another size or transform are decoded into a store of their own when they are first asked for.
        """
        how = preprocessing or self.preprocessing
        frames = self._frames_for(how.transform)
        return PixelInputs(
            tokenized=self._tokenize(split) if preprocessing is None else tokenize(split, preprocessing),
            frames=frames,
            frame_rows=frames.rows_of([video.id for video in split.videos], views),
            mean=torch.tensor(how.mean),
            std=torch.tensor(how.std),
        )

    def _tokenize(self, split: Split) -> Tokenized:
        if split.name not in self._tokenized:
            tokenized = tokenize(split, self.preprocessing, vocab_size=vocabulary_size(self.backbone.config))
            if tokenized.unknown_count:
                log(f"{split.name}: {tokenized.unknown_count} captions hold words that are not in the vocabulary")
            self._tokenized[split.name] = tokenized
        return self._tokenized[split.name]

    def _frames_for(self, transform: FrameTransform) -> Frames:
        folder = frames_folder(transform)
        if folder == frames_folder(self.preprocessing.transform):
            return self.frames
        if folder not in self._other_frames:
            frames = self.decode(transform, folder)
            for video in self.catalog.videos:
                if video.id in frames.failures:  # it could be read before
                    raise DataError(f"{self.recipe.stores / folder}: {video.id}: {frames.failures[video.id]}")
            self._other_frames[folder] = frames
        return self._other_frames[folder]

    def provenance(self, split: Split, model: nn.Module, options: dict[str, Any], views: int = 1) -> dict[str, Any]:
        """Return everything that a model's numbers on a split depend on, for fingerprints."""
        inputs = self.inputs_for(model, split)
        common = self.common_provenance(model, options, inputs, views)
        return common | {
            "split": split.provenance(),
            "tokens": {**common["tokens"], "sha256": inputs.tokenized.sha256()},
            "frames": inputs.frames.provenance_of([video.id for video in split.videos], views),
        }

    def common_provenance(
        self, model: nn.Module, options: dict[str, Any], inputs: PixelInputs, views: int = 1
    ) -> dict[str, Any]:
        """Return what a model's numbers on any text and video of `inputs` depend on besides that text and video."""
        how = teacher_traits(model).preprocessing or self.preprocessing
        precision = self.recipe.teaching.encoding_precision
        return {
            **({} if precision == "float32" else {"encoded_in": precision}),
            "model": {"options": options, **self._identity(model)},
            "tokens": {"max_tokens": how.max_tokens},
            "frames": inputs.frames.provenance(views),
            "normalisation": {"mean": list(how.mean), "std": list(how.std)},
        }

    def _identity(self, model: nn.Module) -> dict[str, Any]:
        """Return class, settings and weights of a model. Each model is hashed once, as are the encoders of a CLIP."""
        owner = model.backbone if isinstance(model, EncoderFeatures) else model
        known = self._identities.setdefault(owner, {})
        if type(model) not in known:
            known[type(model)] = {
                "class": type(model).__name__,
                "settings": architecture_hash(model),
                "weights": weights_hash(model),
            }
            code = code_hash(type(model))
            known[type(model)] |= {} if code is None else {"code": code}
        return known[type(model)]

    def feature_inputs(self, split: Split, clip: nn.Module, views: int = 1) -> FeatureInputs:
        """Return the stored features of frozen encoders; compute them if they are not stored yet."""
        scorer = EncoderFeatures(clip).to(self.device).eval()
        name = split.name if views == 1 else self.training_name(split.name)
        folder = self.recipe.stores / f"features-{self._identity(scorer)['weights'][:8]}" / name
        inputs = self.pixel_inputs(split, views=views)
        texts, videos = store_scorer_tokens(
            folder,
            scorer,
            inputs,
            provenance=self.common_provenance(scorer, {}, inputs, views),
            batch_size=self.recipe.teaching.batch_size,
            device=self.device,
            processes=self.processes,
            label=f"features of {split.name}",
            precision=self.recipe.teaching.encoding_precision,
        )
        return FeatureInputs(texts, videos)

    def inputs(self, split: Split, clip: nn.Module, *, encoders: str, views: int = 1) -> Inputs:
        """Return what a student or teacher with frozen or finetuned encoders trains on."""
        if encoders == "frozen":
            return self.feature_inputs(split, clip, views)
        return self.pixel_inputs(split, views=views)


def build_workspace(
    recipe: Recipe,
    processes: Processes,
    device: torch.device,
    *,
    teachers: TeacherHandles | None = None,
    check: Callable[[Catalog], None] | None = None,
    catalog: Catalog | None = None,
) -> Workspace:
    """Read the annotations, decode all videos that are not decoded yet, and exclude what cannot be read.

    A student with a `text_backbone` gets it taught first.

    `teachers`: the handles of the run; None: new ones. `catalog`: what the annotations hold, if it was read before.
    `check` may refuse the catalogue before anything is decoded. The main process decodes; the others wait for it.
    """
    catalog = build_catalog(recipe) if catalog is None else catalog
    if catalog.understood is not None and processes.is_main:
        for doubt in catalog.understood.doubts:
            log(doubt)
    if check is not None:
        check(catalog)
    source = student_source(recipe, catalog, processes, device)
    backbone = build_backbone(recipe, source)
    processor = build_processor(recipe, backbone.config, source)

    videos = sorted(catalog.videos, key=lambda video: video.id)  # the same rows whichever videos are held out
    training = sorted(catalog.train.videos, key=lambda video: video.id)
    decode = functools.partial(build_frames, recipe, processes, videos, training)
    frames = decode(processor.transform, "frames")
    catalog = require_readable(catalog, frames.failures, max_missing=recipe.data.max_missing)
    for video_id, reason in sorted(catalog.excluded.items()):
        log(f"excluded {video_id}: {reason}")
    for video in catalog.videos:
        if video.id in frames.partially_decoded:
            log(f"{video.id} is partially decoded: {frames.partially_decoded[video.id]}")
    catalog, shared = _find_overlaps(recipe, catalog)
    teachers = open_teachers(recipe, device) if teachers is None else teachers
    work = Workspace(recipe, catalog, frames, processor, backbone, processes, device, teachers, decode, shared)
    log(f"data: {', '.join(f'{split.name} {split.describe()}' for split in catalog.splits)}")
    return work


def _find_overlaps(recipe: Recipe, catalog: Catalog) -> tuple[Catalog, list[Overlap]]:
    """Return the files that several splits share, and warn of them. Decoding has left their hashes in the cache.

    The catalogue comes back without uncaptioned training videos that are copies of held-out ones.
    """
    limit = recipe.frames.time_limit
    facts = file_facts(catalog.videos, hashes_file(recipe), progress=False, time_limit=limit)
    catalog = without_copies(catalog, facts)
    shared = overlaps(catalog, facts)
    for line in describe_overlaps(shared):
        log(f"warning: {line}")
    return catalog, shared
