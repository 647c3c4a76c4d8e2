"""How long a recipe will take here and what it will store: a short probe of the same code on a few videos."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch

from teachclip.models.mean_pooling import EncoderFeatures
from teachclip.pipeline import build
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
    """Run a little of each part of a recipe in a temporary folder, and say what all of it will take.

    Raises DataError if no video of the sample can be decoded, and what loading the models raises.
    """
    clock, estimate = _Clock(), Estimate()
    started = time.time() - psutil.Process().create_time()  # of this command, as of the one that trains
    with tempfile.TemporaryDirectory(prefix="teachclip-init-") as folder:
        small = _small_recipe(recipe, films, texts, Path(folder))
        names = sorted(os.listdir(small.data.videos))
        with clock("load"):
            work = build_workspace(small, Processes(), _device())
            for handle in work.teachers.values():
                handle.model  # noqa: B018  (its checkpoint is loaded here)
        estimate.unreadable = [films.sample(VIDEOS)[names.index(name)] for name in work.catalog.excluded]
        clock.seconds["load"] -= _decode_again(work, clock)
        paths = [video.path for video in work.catalog.videos]
        with clock("hash"):
            for path in paths:
                file_hash(path)
        sizes = _encode(work, clock)
        steps = _steps(work, clock)
        hashed = sum(path.stat().st_size for path in paths)
    shares = {
        "decode videos": (clock.seconds["decode"] / len(paths) / usable_cores() + 0.01) * len(films.files),
        "hash files": clock.seconds["hash"] / max(1, hashed) * films.size,
        "encode videos": clock.seconds["videos"] / len(work.catalog.train.videos) * len(films.files),
        "encode texts": clock.seconds["texts"] / min(TEXTS, len(texts)) * len(texts),
        "train": clock.seconds["steps"] / steps * (recipe.train.steps or 0),
        "start and load": started + max(0.0, clock.seconds["load"]),
    }
    estimate.seconds = shares
    count, size = recipe.frames.count, work.preprocessing.transform.size
    estimate.disk = {
        "frames": float(len(films.files) * count * 3 * size * size),
        "features of videos": float(sizes["videos"] * len(films.files)),
        "features of texts": float(sizes["texts"] * len(texts)),
        "relevance": 2.0 * len(texts) * len(films.files),
        "student and checkpoints": 4.0 * sum(tensor.nbytes for tensor in work.backbone.state_dict().values()),
    }
    return estimate


def _device() -> torch.device:
    from teachclip.training.distributed import build_accelerator

    return build_accelerator(dry_run=True).device


def _small_recipe(recipe: Recipe, films: Films, texts: Sequence[str], folder: Path) -> Recipe:
    """Return the recipe on a few of the videos and texts; what it writes goes to `folder`."""
    (folder / "videos").mkdir()
    for number, name in enumerate(films.sample(VIDEOS)):
        os.symlink(films.files[name], folder / "videos" / f"{number:02}{Path(name).suffix}")
    few = texts[:: max(1, len(texts) // TEXTS)][:TEXTS]
    (folder / "texts.txt").write_text("\n".join(few), encoding="utf-8")
    values = recipe.model_dump(mode="json")
    values |= {"output": str(folder / "run"), "stores": str(folder / "stores")}
    values["data"] |= {"videos": str(folder / "videos"), "texts": str(folder / "texts.txt"), "max_missing": 1.0}
    values["data"]["validation"] = {"videos": 1}
    values["train"]["batch_size"] = min(values["train"]["batch_size"], len(few))
    return load_recipe(values)


def _decode_again(work: Workspace, clock: _Clock) -> float:
    """Decode the videos one by one in this process. Returns the seconds."""
    from teachclip.data.video.decode import decode_frames

    decoding = build_decoding(work.recipe, work.preprocessing.transform)
    with clock("decode"):
        for video in work.catalog.videos:
            decoding.transform(decode_frames(video.path, decoding.sampling))
    return clock.seconds["decode"]


@torch.no_grad()
def _encode(work: Workspace, clock: _Clock) -> dict[str, float]:
    """Encode texts and videos with the backbone and every teacher. Returns the bytes per text and per video."""
    sizes = {"texts": 0.0, "videos": 0.0}
    split = work.catalog.train
    scorers = [EncoderFeatures(work.backbone).to(work.device).eval()]
    scorers += [handle.model for handle in work.teachers.values() if not handle.reads_relevance]
    for scorer in scorers:
        inputs = work.inputs_for(scorer, split)
        for name, encode, count in (
            ("texts", lambda rows, i=inputs, s=scorer: _texts(s, i, rows, work.device), inputs.text_count),
            ("videos", lambda rows, i=inputs, s=scorer: _videos(s, i, rows, work.device), inputs.video_count),
        ):
            encode(np.arange(1))  # the first call of a model takes longer
            with clock(name):
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
