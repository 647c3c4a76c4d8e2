"""The folder of a pictograms dataset: videos, one table of captions, and a tiny CLIP.

    videos/train0.mp4 ...   three pictograms that move, one after another
    captions.csv            video,caption,split
    clip/                   the tiny CLIP, pre-trained on single frames of pictograms and their names
    manifest.json           the settings and results; written last

The same settings and font give the same bytes, however many workers write.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from teachclip.console import log
from teachclip.data.video.writing import ENCODER
from teachclip.datasets.folder import (
    Mapper,
    SplitCounts,
    captions_table,
    complete,
    files_of,
    making,
    read_manifest,
    video_file,
    write_missing,
)
from teachclip.datasets.pictograms.drawing import RATE, single_frame, write_video
from teachclip.datasets.pictograms.font import NOTO, Pictogram, read_pictograms
from teachclip.datasets.pictograms.scenes import (
    MOTIONS,
    Caption,
    Scene,
    Vocabulary,
    draw_captions,
    draw_scene,
    is_true,
    oracle_recall_at_1,
    with_article,
)
from teachclip.errors import DataError
from teachclip.pretraining.clip import FRESH, ClipSettings, SingleFrames, pretrain_clip
from teachclip.pretraining.tokenizer import build_tokenizer, words_of
from teachclip.store.files import file_hash, write_atomic

NAME, VERSION = "pictograms", 1
SPLITS = ("train", "val", "test")
CAPTIONS = {"train": 4, "val": 2, "test": 2}
"""Captions of a video."""
CLIP = ClipSettings(steps=1500, batch_size=128, lr=1.5e-3, vision_layers=2, patch_size=24)
_STREAMS = {"clip": 0, "fresh": 1, "clip frames": 10, "fresh frames": 11, "train": 20, "val": 21, "test": 22}
"""The second number of the seeds of what is drawn."""
MAX_TOKENS = 64
"""Rows of the CLIP's text position table: more than any caption needs."""
VIDEO_BYTES = 40_000
"""Approximate size of one file, for the message when the disk is full."""


@dataclass(frozen=True)
class PictogramsSettings(SplitCounts):
    """Everything that the dataset depends on besides the font. Raises DataError if a value is not allowed."""

    clip_frames: int = 16_000
    """Frames that the tiny CLIP is pre-trained on."""
    clip: ClipSettings = CLIP

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_frames < self.clip.batch_size:
            allowed = f"{self.clip.batch_size} or more, as many as the tiny CLIP has in a batch"
            raise DataError(f"clip_frames is {self.clip_frames}; allowed: {allowed}")


@dataclass(frozen=True)
class CaptionedScene:
    """A scene and its captions."""

    scene: Scene
    captions: list[Caption]


def make_pictograms(
    folder: str | Path,
    settings: PictogramsSettings | None = None,
    *,
    font: str | Path = NOTO,
    workers: int = 1,
    progress: bool = True,
) -> bool:
    """Make the missing files of a pictograms dataset in `folder`. Returns whether any were missing.

    `font`: a font of coloured pictograms (emoji), such as Noto Color Emoji. `workers`: processes. Raises DataError if
    the font cannot be used or the folder contains something else, and StoreError if it cannot be written.
    """
    settings = settings or PictogramsSettings()
    pictograms = read_pictograms(Path(font))
    record = {
        "version": VERSION,
        "dataset": asdict(settings),
        "font": file_hash(Path(font)),
        "encoder": dict(ENCODER),
        "rate": RATE,
    }
    root = Path(folder)
    with making(root, record, NAME, workers=workers, files=files_of(settings, SPLITS)) as each:
        if each is None:
            return False
        splits = {split: _split(pictograms, settings, split) for split in SPLITS}
        videos = {video_file(split, n): (split, video) for split in SPLITS for n, video in enumerate(splits[split])}
        rows = ((file, caption.text, split) for file, (split, video) in videos.items() for caption in video.captions)
        write_atomic(root / "captions.csv", captions_table(rows))
        scenes = {file: video.scene for file, (_, video) in videos.items()}
        write_missing(root / "videos", scenes, write_video, str(font), each, size=VIDEO_BYTES, progress=progress)
        if not (root / "clip").exists():
            _make_clip(root / "clip", pictograms, settings, str(font), each, progress)
        results = {
            "clip": json.loads((root / "clip" / "pretraining.json").read_text(encoding="utf-8")),
            "pictograms": len(pictograms),
            "splits": {split: _facts(of_split) for split, of_split in splits.items()},
        }
        complete(root, record, results)
    return True


def log_facts(folder: Path) -> None:
    """Print what the manifest says of the test split and of the tiny CLIP."""
    results = read_manifest(folder, NAME)["results"]
    facts = results["splits"]["test"]
    log(f"tiny CLIP: text-to-frame R@1 {results['clip']['frame_recall_at_1']:.0f} % on fresh single frames")
    log(
        f"upper bound of text-to-video R@1 on test: {facts['oracle_recall_at_1']:.0f} %, as a caption is true of "
        f"{facts['videos_that_a_caption_is_true_of']:.1f} videos"
    )


def _split(pictograms: Sequence[Pictogram], settings: PictogramsSettings, split: str) -> list[CaptionedScene]:
    vocabulary = Vocabulary(pictograms, settings.seed)
    seeds = [(settings.seed, _STREAMS[split], number) for number in range(settings.count(split))]
    scenes = [draw_scene(vocabulary, (*seed, 0)) for seed in seeds]
    return [
        CaptionedScene(scene, draw_captions(scene, CAPTIONS[split], (*seed, 1)))
        for scene, seed in zip(scenes, seeds, strict=True)
    ]


def _make_clip(
    folder: Path,
    pictograms: Sequence[Pictogram],
    settings: PictogramsSettings,
    font: str,
    each: Mapper,
    progress: bool,
) -> None:
    """Pre-train the tiny CLIP on frames of one or two pictograms, all of them as often, that stand still."""
    temporary = folder.with_name("clip.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    words = words_of([item.name for item in pictograms])
    phrases = [phrase for ways in MOTIONS.values() for phrase in ways]
    # motions, "then" and "after" are in no caption of a single frame, and still are one token each
    tokenizer = build_tokenizer({*words, *words_of(phrases), "a", "an", "and", "then", "after"}, MAX_TOKENS)
    shown = []
    for stream, count in (("clip", settings.clip_frames), ("fresh", min(FRESH, settings.clip_frames))):
        some = [_drawn(pictograms, (settings.seed, _STREAMS[stream], number)) for number in range(count)]
        seeds = [(settings.seed, _STREAMS[f"{stream} frames"], number) for number in range(count)]
        frames = each(single_frame, some, seeds, [font] * count)
        frames = tqdm(frames, total=count, desc="draw single frames", unit="frame", disable=not progress)
        pixels = torch.from_numpy(np.stack(list(frames))).permute(0, 3, 1, 2)
        texts = [" and ".join(with_article(item.name) for item in group) for group in some]
        shown.append(SingleFrames(pixels, texts, tokenizer))
    results = pretrain_clip(temporary, shown[0], shown[1], tokenizer, settings.clip, progress=progress)
    (temporary / "pretraining.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    os.replace(temporary, folder)


def _drawn(pictograms: Sequence[Pictogram], seed: tuple[int, ...]) -> tuple[Pictogram, ...]:
    """Return one pictogram, or two in three of ten frames."""
    rng = np.random.default_rng(seed)
    count = 1 + int(rng.random() < 0.3)
    return tuple(pictograms[row] for row in rng.choice(len(pictograms), count, replace=False))


def _facts(videos: Sequence[CaptionedScene]) -> dict[str, float]:
    """Return how far captions distinguish the videos of a split."""
    scenes, captions = [video.scene for video in videos], [video.captions for video in videos]
    true = [sum(is_true(caption, scene) for scene in scenes) for of_scene in captions for caption in of_scene]
    return {
        "videos": len(videos),
        "captions": len(true),
        "different_captions": len({caption.text for of_scene in captions for caption in of_scene}),
        "videos_that_a_caption_is_true_of": round(float(np.mean(true)), 3),
        "oracle_recall_at_1": round(oracle_recall_at_1(captions, scenes), 2),
    }
