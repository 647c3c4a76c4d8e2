"""How long a recipe will take here and what it will store: a short probe of the same code on a few videos."""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from teachclip.data.annotations.records import Catalog, Video
from teachclip.models.mean_pooling import EncoderFeatures
from teachclip.pipeline import build
from teachclip.pipeline.conditions import possible_recipes
from teachclip.pipeline.distill import build_training
from teachclip.pipeline.encoders import prepare_encoders
from teachclip.pipeline.frames import build_decoding
from teachclip.pipeline.workspace import Workspace, build_workspace
from teachclip.processes import Processes, usable_cores
from teachclip.recipe.loading import load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.scorer import Tokens
from teachclip.scoring.inputs import PixelInputs, encode_text_batch, encode_video_batch, to_device
from teachclip.start.look import Films
from teachclip.store.files import file_hash

VIDEOS, TEXTS = 6, 256
"""What the probe takes; texts are encoded as many at a time in a run."""

STEPS, LIMIT = (3, 40), 6.0
"""Fewest and most steps that are timed, and the seconds after which no further one begins."""


@dataclass
class Estimate:
    """Seconds by part of the run, bytes on the disk by part, and the videos that could not be decoded."""

    seconds: dict[str, float] = field(default_factory=dict)
    disk: dict[str, float] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    @property
    def minutes(self) -> float:
        """Of the whole run."""
        return sum(self.seconds.values()) / 60

    @property
    def gigabytes(self) -> float:
        """On the disk, all parts."""
        return sum(self.disk.values()) / 1e9


@dataclass(frozen=True)
class Amounts:
    """What a run goes through: how many bytes, videos and texts, how many of them are for training, and steps.

    `looks`: videos and texts that the student encodes for all evaluations together.
    """

    size: int
    videos: int
    texts: int
    training: tuple[int, int]
    steps: int
    looks: tuple[int, int] = (0, 0)

    @classmethod
    def of_catalog(cls, recipe: Recipe, catalog: Catalog) -> Amounts:
        """Count those of a recipe with captions."""
        train, others = catalog.train, [split for split in catalog.splits if split is not catalog.train]
        sampler = build.build_sampler(recipe.train, train, seed=recipe.seed)
        schedule = build.build_schedule(
            recipe.train, recipe.optimizer, batches_per_epoch=sampler.batches_per_epoch, seed=recipe.seed
        )
        steps, every = schedule.steps, schedule.evaluate_every
        selection = build.build_selection(recipe, catalog)
        times = -(-steps // every)
        seen = [*[selection] * times, *others, others[-1]]  # selection, the results, and the zero-shot student's
        return cls(
            sum(path.stat().st_size for path in {video.path for video in catalog.videos}),
            len(catalog.videos),
            sum(len(split.captions) for split in catalog.splits),
            (len(train.videos), len(train.captions)),
            steps,
            (sum(len(split.videos) for split in seen), sum(len(split.captions) for split in seen)),
        )


class _Clock:
    """Measures what stands inside `with clock("name")`; several times add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def probe(recipe: Recipe, films: Films, texts: Sequence[str]) -> Estimate:
    """Run a little of each part of a recipe without captions in a temporary folder; say what all of it will take.

    Raises DataError if no video of the sample can be decoded, and what loading the models raises.
    """
    count = len(films.files)
    amounts = Amounts(films.size, count, len(texts), (count, len(texts)), recipe.train.steps or 0)
    names = films.sample(VIDEOS)
    with tempfile.TemporaryDirectory(prefix="teachclip-init-") as folder:
        videos = [Video(name, films.files[name]) for name in names]
        few = texts[:: max(1, len(texts) // TEXTS)][:TEXTS]
        return _probe(_without_captions(recipe, videos, few, Path(folder)), recipe, videos, amounts)


def probe_captioned(recipe: Recipe) -> Estimate:
    """Do as `probe` for a recipe with captions; with all that its conditions add, which are not measured here."""
    recipe = possible_recipes(recipe)[-1]
    catalog = build.build_catalog(recipe)
    amounts = Amounts.of_catalog(recipe, catalog)
    by_size = sorted(catalog.train.videos, key=lambda video: video.path.stat().st_size)
    number = min(VIDEOS, len(by_size))
    videos = [by_size[(2 * step + 1) * len(by_size) // (2 * number)] for step in range(number)]
    with tempfile.TemporaryDirectory(prefix="teachclip-init-") as folder:
        return _probe(_with_captions(recipe, catalog, videos, Path(folder)), recipe, videos, amounts)


def _probe(small: Recipe, recipe: Recipe, videos: Sequence[Video], amounts: Amounts) -> Estimate:
    """Run the recipe `small` on `videos`, named by their numbers, and say what `recipe` takes on all."""
    clock, estimate = _Clock(), Estimate()
    started = time.time() - psutil.Process().create_time()  # of this command, as of the one that trains
    with clock("load"):
        work = build_workspace(small, Processes(), _device())
        for handle in work.teachers.values():
            handle.model  # noqa: B018  (its checkpoint is loaded here)
    estimate.unreadable = [videos[int(name[:2])].id for name in work.catalog.excluded]  # see `_name`
    clock.seconds["load"] -= _decode_again(work, clock)
    paths = list({video.path for video in work.catalog.videos})
    with clock("hash"):
        for path in paths:
            file_hash(path)
    sizes = _encode(work, clock)
    steps = _steps(work, clock)
    hashed = sum(path.stat().st_size for path in paths)
    taken, train = clock.seconds, work.catalog.train
    larger, encoded = 1.0, (amounts.videos, amounts.texts)
    if recipe.train.encoders == "finetuned":  # a step takes as long as its batch is large
        larger, encoded = recipe.train.batch_size / small.train.batch_size, amounts.looks
    estimate.seconds = {
        "decode videos": (taken["decode"] / len(work.catalog.videos) / usable_cores() + 0.01) * amounts.videos,
        "hash files": taken["hash"] / max(1, hashed) * amounts.size,
        "encode videos": (taken["videos of student"] * encoded[0] + taken["videos of teachers"] * amounts.training[0])
        / len(train.videos),
        "encode texts": (taken["texts of student"] * encoded[1] + taken["texts of teachers"] * amounts.training[1])
        / len(train.captions),
        "train": taken["steps"] / steps * larger * amounts.steps,
        "start and load": started + max(0.0, taken["load"]),
    }
    count, size = recipe.frames.count, work.preprocessing.transform.size
    estimate.disk = {
        "frames": float(amounts.videos * count * 3 * size * size),
        "features of videos": float(sizes["videos"] * amounts.videos),
        "features of texts": float(sizes["texts"] * amounts.texts),
        "relevance": 2.0 * amounts.training[0] * amounts.training[1] * max(1, len(recipe.teachers)),
        "student and checkpoints": 4.0 * sum(tensor.nbytes for tensor in work.backbone.state_dict().values()),
    }
    return estimate


def _device() -> torch.device:
    from teachclip.training.distributed import build_accelerator

    return build_accelerator(dry_run=True).device


def _without_captions(recipe: Recipe, videos: Sequence[Video], texts: Sequence[str], folder: Path) -> Recipe:
    """Return the recipe on a few of the videos and texts; what it writes goes to `folder`."""
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    data = {"texts": str(folder / "texts.txt")}
    return _small_recipe(recipe, videos, data, min(recipe.train.batch_size, len(texts)), folder)


def _with_captions(recipe: Recipe, catalog: Catalog, videos: Sequence[Video], folder: Path) -> Recipe:
    """Return the recipe on a few of the training videos with their captions; what it writes goes to `folder`."""
    captions: dict[str, list[str]] = {video.id: [] for video in videos}
    for caption in catalog.train.captions:
        if caption.video_id in captions:
            captions[caption.video_id].append(caption.text)
    rows = []
    for number, video in enumerate(videos):
        part = ["" if time is None else time for time in (video.start, video.end)]
        rows += [[_name(number, video), text, *part] for text in captions[video.id] or ["a video"]]
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["video", "caption", "start", "end"], *rows])
    data: dict[str, Any] = {"format": "csv", "annotations": str(folder / "captions.csv")}
    data |= dict.fromkeys(("train", "test", "texts", "uncaptioned"))
    most = max(len(texts) or 1 for texts in captions.values())  # of the video that is held out
    return _small_recipe(recipe, videos, data, max(1, min(recipe.train.batch_size, len(rows) - most)), folder)


def _name(number: int, video: Video) -> str:
    return f"{number:02}{video.path.suffix}"


def _small_recipe(
    recipe: Recipe, videos: Sequence[Video], data: dict[str, Any], batch_size: int, folder: Path
) -> Recipe:
    """Return the recipe on some videos, which are named by their numbers, and on other `data`."""
    (folder / "videos").mkdir()
    for number, video in enumerate(videos):
        os.symlink(video.path, folder / "videos" / _name(number, video))
    values = recipe.model_dump(mode="json")
    values |= {"output": str(folder / "run"), "stores": str(folder / "stores")}
    values["data"] |= {"videos": str(folder / "videos"), "max_missing": 1.0, "validation": {"videos": 1}, **data}
    values["train"] |= {"batch_size": batch_size, "epochs": None, "steps": STEPS[1] + 1, "workers": 0}
    return load_recipe(values)


def _decode_again(work: Workspace, clock: _Clock) -> float:
    """Decode the videos one by one in this process. Returns the seconds."""
    from teachclip.data.video.decode import decode_frames

    decoding = build_decoding(work.recipe, work.preprocessing.transform)
    with clock("decode"):
        for video in work.catalog.videos:
            decoding.transform(decode_frames(video.path, decoding.sampling, start=video.start, end=video.end))
    return clock.seconds["decode"]


@torch.no_grad()
def _encode(work: Workspace, clock: _Clock) -> dict[str, float]:
    """Encode texts and videos with the backbone and every teacher. Returns the bytes per text and per video."""
    sizes = {"texts": 0.0, "videos": 0.0}
    split = work.catalog.train
    clock.seconds |= {f"{kind} of {who}": 0.0 for kind in sizes for who in ("student", "teachers")}
    scorers = [("student", EncoderFeatures(work.backbone).to(work.device).eval())]
    scorers += [("teachers", handle.model) for handle in work.teachers.values() if not handle.reads_relevance]
    for who, scorer in scorers:
        inputs = work.inputs_for(scorer, split)
        for name, encode, count in (
            ("texts", lambda rows, i=inputs, s=scorer: _texts(s, i, rows, work.device), inputs.text_count),
            ("videos", lambda rows, i=inputs, s=scorer: _videos(s, i, rows, work.device), inputs.video_count),
        ):
            encode(np.arange(1))  # the first call of a model takes longer
            with clock(f"{name} of {who}"):
                tokens = encode(np.arange(count))
            sizes[name] += sum(tensor.nbytes for tensor in tokens.values()) / count
    return sizes


def _texts(scorer: object, inputs: PixelInputs, rows: np.ndarray, device: torch.device) -> Tokens:
    return {
        name: tensor.cpu()
        for name, tensor in encode_text_batch(scorer, to_device(inputs.texts(rows), device)).items()  # type: ignore[arg-type]
    }


def _videos(scorer: object, inputs: PixelInputs, rows: np.ndarray, device: torch.device) -> Tokens:
    batch = to_device(inputs.videos(rows), device)
    return {name: tensor.cpu() for name, tensor in encode_video_batch(scorer, batch).items()}  # type: ignore[arg-type]


def _steps(work: Workspace, clock: _Clock) -> int:
    """Take some training steps as the run takes them, after one to warm up. Returns how many were timed."""
    recipe = work.recipe
    student = build.build_student(recipe.student, work.backbone, seed=recipe.seed, frames=recipe.frames.count)
    prepare_encoders(student, recipe)
    task, batches = build_training(work, student.to(work.device), None)
    optimizer = build.build_optimizer_for(student, recipe.optimizer)
    step = 0
    while step <= STEPS[0] or (step <= STEPS[1] and clock.seconds["steps"] < LIMIT):
        with clock("warm-up" if step == 0 else "steps"):
            batch = to_device({**batches[step], "progress": torch.tensor(0.0)}, work.device)
            task(batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            if work.device.type == "cuda":
                torch.cuda.synchronize()
        step += 1
    return step - 1
