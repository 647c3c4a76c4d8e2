"""Make the embedded world: small videos with captions, and a tiny CLIP that knows what is in a frame."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachclip.errors import DataError
from teachclip.shapes.presets import find_preset
from teachclip.shapes.rendering import ENCODER
from teachclip.shapes.scenes import WorldPlan, video_id, write_world
from teachclip.store.files import explain_failed_write, locked_folder, write_atomic
from teachclip.store.fingerprint import describe_difference, fingerprint_of

if TYPE_CHECKING:
    from teachclip.shapes.pretraining import PretrainingSettings

MANIFEST, STARTED, CLIP_RECORD = "manifest.json", "manifest.partial.json", "pretraining.json"
VERSION = 1
CLIP_FILES = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", CLIP_RECORD)
WORLD_FILES = ("annotations.json", "train.csv", "test.csv", "test_full.csv", "truth.json")


def make_shapes(
    folder: str | Path,
    *,
    preset: str = "default",
    train_videos: int | None = None,
    test_videos: int | None = None,
    seed: int = 0,
    clip_seed: int = 0,
    workers: int = 2,
    clip: PretrainingSettings | None = None,
    clip_from: str | Path | None = None,
    progress: bool = True,
) -> bool:
    """Make what is missing of a world in `folder`; returns whether anything was.

    `preset` names one of `PRESETS`, which also says how many videos there are where the caller does not. `seed`
    changes videos and captions, `clip_seed` the tiny CLIP. `clip`: another plan of pre-training, in place of
    the usual one with `clip_seed`. `clip_from`: the folder of another world whose CLIP is copied, as all seeds of an
    experiment should start from one CLIP. Raises DataError if the folder holds something else or the preset is
    unknown, and StoreError if the folder cannot be written.
    """
    from teachclip.shapes.pretraining import PretrainingSettings

    numbers = find_preset(preset)
    world = WorldPlan(
        numbers.train_videos if train_videos is None else train_videos,
        numbers.test_videos if test_videos is None else test_videos,
        seed,
        preset,
    )
    if workers < 1:
        raise DataError(f"workers is {workers}; allowed: 1 or more")
    pretraining = clip or PretrainingSettings(seed=clip_seed)
    clip_settings = asdict(pretraining) if clip_from is None else _clip_record(Path(clip_from) / "clip")["settings"]
    settings = {"version": VERSION, "world": world.settings(), "encoder": dict(ENCODER), "clip": clip_settings}
    root = Path(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked_folder(root):
            _check_folder(root, settings)
            if (root / MANIFEST).exists() and _is_whole(root, world):
                return False
            _start(root, settings)
            write_world(root, world, workers=workers, progress=progress)
            if not _has_clip(root / "clip"):
                _make_clip(root / "clip", pretraining, clip_from, progress)
            _finish(root, settings)
    except OSError as error:
        raise explain_failed_write(error, root, "the world", 50_000_000) from error
    return True


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise DataError unless `folder` is empty or was begun with the same settings."""
    for name in (MANIFEST, STARTED):
        path = folder / name
        if not path.exists():
            continue
        difference = describe_difference(_read(path)["settings"], settings)
        if difference:
            raise DataError(f"{folder} holds another world ({difference}); choose another folder or delete it")
        return
    found = sorted(path.name for path in folder.iterdir())
    if found:
        raise DataError(f"{folder} holds {', '.join(found[:3])}, which is no world of ours; choose an empty folder")


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a finished world: its settings and results. Raises DataError if it cannot be read."""
    return _read(folder / MANIFEST)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        dict(content["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as the record of a world ({error!r}); delete its folder") from error
    return content


def _is_whole(folder: Path, plan: WorldPlan) -> bool:
    files = [*WORLD_FILES, *(f"videos/{video_id(index)}.mp4" for index in range(plan.videos))]
    return all((folder / name).exists() for name in files) and _has_clip(folder / "clip")


def _has_clip(folder: Path) -> bool:
    return all((folder / name).exists() for name in CLIP_FILES)


def _clip_record(folder: Path) -> dict[str, Any]:
    if not _has_clip(folder):
        raise DataError(f"{folder} holds no tiny CLIP to copy; give the folder of a finished world")
    return _read(folder / CLIP_RECORD)


def _start(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note what is being made, and take the mark of completeness away until it is."""
    write_atomic(folder / STARTED, json.dumps({"settings": settings}, indent=1).encode())
    (folder / MANIFEST).unlink(missing_ok=True)


def _make_clip(folder: Path, plan: PretrainingSettings, source: str | Path | None, progress: bool) -> None:
    """Pre-train or copy the tiny CLIP; the folder appears when it is whole."""
    from teachclip.shapes.pretraining import pretrain_clip

    part = folder.with_name("clip.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    if source is not None:
        shutil.copytree(Path(source) / "clip", part)
    else:
        part.mkdir()
        results = pretrain_clip(part, plan, progress=progress)
        record = {"settings": asdict(plan), "results": results}
        (part / CLIP_RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.replace(part, folder)


def _finish(folder: Path, settings: Mapping[str, Any]) -> None:
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    results = {"oracle_recall_at_1": truth["oracle_recall_at_1"], "clip": _clip_record(folder / "clip")["results"]}
    content = {"settings": settings, "fingerprint": fingerprint_of(settings), "results": results}
    write_atomic(folder / MANIFEST, json.dumps(content, indent=1).encode())
    (folder / STARTED).unlink(missing_ok=True)
