"""The folder of a BabyAI dataset: videos, one table of captions, and a tiny CLIP.

    videos/train0.mp4 ...   one frame at the start and one after each action of the bot
    captions.csv            video,caption,split: the mission, and the mission with its halves in the other order
    teacher_captions.csv    the same with more training videos (teacher0.mp4 ...), for teachers that saw more than
                            their students
    clip/                   the tiny CLIP, pre-trained on frames of other episodes and missions that they fulfil
    manifest.json           the settings and results; written last

The same settings give the same bytes, however many workers write. Every split draws its own seeds of the simulator,
so no two videos show one episode.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from teachclip.console import log
from teachclip.data.video.writing import ENCODER
from teachclip.datasets.babyai.episodes import COMPOSED, Episode, solve
from teachclip.datasets.babyai.moments import frame_and_truth, frames_and_texts
from teachclip.datasets.babyai.truth import Mission, fulfilled, mission_of, oracle_recall_at_1
from teachclip.datasets.babyai.videos import RATE, write_video
from teachclip.datasets.folder import (
    Mapper,
    SplitCounts,
    captions_table,
    check_counts,
    complete,
    files_of,
    making,
    read_manifest,
    video_file,
    write_missing,
)
from teachclip.errors import DataError
from teachclip.pretraining.clip import FRESH, ClipSettings, SingleFrames, pretrain_clip
from teachclip.pretraining.tokenizer import build_tokenizer, words_of
from teachclip.store.files import write_atomic

NAME, VERSION = "BabyAI", 2
SPLITS = ("train", "val", "test")
MORE = "teacher"
"""Training videos that students do not see."""
CLIP = ClipSettings(steps=1000, batch_size=48, vision_layers=2)
"""Of the tiny CLIP: a patch is a cell of the grid, so little suffices."""
CLIP_PAIRS = 8
"""Frames with a text each that the tiny CLIP gets of an episode."""
MAX_TOKENS = 48
"""Rows of the CLIP's text position table: more than any mission needs (38)."""
VIDEO_BYTES = 20_000
"""Approximate size of one file, for the message when the disk is full."""
_SEEDS = 1_000_000
"""Seeds of the simulator that one split of one dataset may draw from."""


@dataclass(frozen=True)
class BabyAISettings(SplitCounts):
    """Everything that the dataset depends on. Raises DataError if a value is not allowed."""

    teacher_videos: int = 800
    """Further training videos, for teachers only."""
    clip_episodes: int = 1200
    """Episodes that the tiny CLIP is pre-trained on."""
    view: str = "agent"
    fewest_actions: int = 8
    most_actions: int = 64
    clip: ClipSettings = CLIP

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, {"teacher_videos": 0})
        if self.clip_episodes < self.clip.batch_size:
            allowed = f"{self.clip.batch_size} or more, as many as the tiny CLIP has in a batch"
            raise DataError(f"clip_episodes is {self.clip_episodes}; allowed: {allowed}")
        if not 1 <= self.fewest_actions <= self.most_actions:
            raise DataError(
                f"fewest_actions is {self.fewest_actions}; allowed: 1 to most_actions, {self.most_actions}"
            )
        if self.view not in ("agent", "full"):
            raise DataError(f"view is {self.view!r}; allowed: agent, full")

    def first_seed(self, stream: str) -> int:
        """Return the first seed of the simulator for a split, or for `clip`, `fresh` or `teacher` episodes."""
        streams = (*SPLITS, "clip", "fresh", MORE)
        return (self.seed * len(streams) + streams.index(stream)) * _SEEDS


def make_babyai(
    folder: str | Path, settings: BabyAISettings | None = None, *, workers: int = 1, progress: bool = True
) -> bool:
    """Make the missing files of a BabyAI dataset in `folder`. Returns whether any were missing.

    `workers`: processes. Raises DataError if the folder contains something else, and StoreError if it cannot be
    written.
    """
    settings = settings or BabyAISettings()
    record = {"version": VERSION, "dataset": asdict(settings), "encoder": dict(ENCODER), "rate": RATE}
    root = Path(folder)
    files = ["teacher_captions.csv", *files_of(settings, (*SPLITS, MORE))]
    with making(root, record, NAME, workers=workers, files=files) as each:
        if each is None:
            return False
        episodes = {
            split: _episodes(settings, split, settings.count(split), each, progress) for split in (*SPLITS, MORE)
        }
        write_atomic(root / "captions.csv", captions_table(_rows({split: episodes[split] for split in SPLITS})))
        write_atomic(root / "teacher_captions.csv", captions_table(_rows(episodes)))
        videos = {
            video_file(split, n): item for split, of_split in episodes.items() for n, item in enumerate(of_split)
        }
        write_missing(root / "videos", videos, write_video, settings.view, each, size=VIDEO_BYTES, progress=progress)
        if not (root / "clip").exists():
            _make_clip(root / "clip", settings, each, progress)
        results = {
            "clip": json.loads((root / "clip" / "pretraining.json").read_text(encoding="utf-8")),
            "splits": {split: _facts(episodes[split], each) for split in SPLITS},
        }
        complete(root, record, results)
    return True


def _rows(episodes: Mapping[str, Sequence[Episode]]) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of a table of captions of some splits. Videos for teachers are training videos in it."""
    for split, of_split in episodes.items():
        for number, episode in enumerate(of_split):
            for caption in filter(None, (episode.mission, episode.reworded)):
                yield video_file(split, number), caption, "train" if split == MORE else split


def _episodes(
    settings: BabyAISettings,
    stream: str,
    wanted: int,
    each: Mapper,
    progress: bool,
) -> list[Episode]:
    """Return the first `wanted` episodes of a stream of seeds that the bot solves in as many actions as allowed."""
    episodes: list[Episode] = []
    seeds = count(settings.first_seed(stream))
    with tqdm(total=wanted, desc=f"solve missions ({stream})", unit="mission", disable=not progress) as bar:
        while len(episodes) < wanted:
            some = list(islice(seeds, min(64, 2 * (wanted - len(episodes)))))
            solved = [episode for episode in each(solve, some, [COMPOSED] * len(some)) if episode is not None]
            allowed = range(settings.fewest_actions, settings.most_actions + 1)
            episodes += [item for item in solved if len(item.actions) in allowed]
            bar.update(min(wanted, len(episodes)) - bar.n)
    return episodes[:wanted]


def _make_clip(folder: Path, settings: BabyAISettings, each: Mapper, progress: bool) -> None:
    """Pre-train the tiny CLIP on frames of episodes that are in no split, and missions that they fulfil."""
    temporary = folder.with_name("clip.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    seen = _episodes(settings, "clip", settings.clip_episodes, each, progress)
    drawn = each(frames_and_texts, seen, [settings.view] * len(seen), [CLIP_PAIRS] * len(seen))
    pixels: list[np.ndarray] = []
    texts: list[str] = []
    for frames, words in tqdm(drawn, total=len(seen), desc="draw frames", unit="episode", disable=not progress):
        pixels.append(frames)
        texts += words
    tokenizer = build_tokenizer(words_of(texts), MAX_TOKENS)
    groups = [number for number in range(len(seen)) for _ in range(CLIP_PAIRS)]
    data = SingleFrames(_images(np.concatenate(pixels)), texts, tokenizer, groups)
    others = _episodes(settings, "fresh", min(FRESH, settings.clip_episodes), each, progress)
    frames, words, truths = zip(*each(frame_and_truth, others, [settings.view] * len(others)), strict=True)
    fresh = SingleFrames(_images(np.stack(frames)), words, tokenizer)
    results = pretrain_clip(temporary, data, fresh, tokenizer, settings.clip, progress=progress)
    results["frame_recall_at_1_oracle"] = frame_oracle(words, truths)
    (temporary / "pretraining.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    os.replace(temporary, folder)


def frame_oracle(texts: Sequence[str], truths: Sequence[Sequence[str]]) -> float:
    """Return the text-to-frame recall at 1, in percent, of a model that knows which frames fulfil a mission.

    Text i is that of frame i, which fulfils the missions `truths[i]`. "The" and "a" are the same to it.
    """
    frames = Counter(text for truth in truths for text in {_plain(text) for text in truth})
    return round(100 * float(np.mean([1 / frames[_plain(text)] for text in texts])), 2)


def _plain(text: str) -> str:
    return text.replace("the ", "a ")


def _images(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def _facts(episodes: Sequence[Episode], each: Mapper) -> dict[str, float]:
    """Return how far captions tell the videos of a split apart."""
    missions: list[Mission] = list(each(mission_of, episodes))
    known = tuple(dict.fromkeys(missions))
    fulfilments = list(each(fulfilled, episodes, [known] * len(episodes)))
    lengths = [len(episode.actions) for episode in episodes]
    fulfil = [sum(mission in item for item in fulfilments) for mission in missions]
    texts = [episode.mission for episode in episodes]
    return {
        "videos": len(episodes),
        "captions": sum(1 + (episode.reworded is not None) for episode in episodes),
        "different_missions": len(set(texts)),
        "frames_mean": round(1 + float(np.mean(lengths)), 2),
        "videos_that_fulfil_a_mission": round(float(np.mean(fulfil)), 3),
        "oracle_recall_at_1": round(oracle_recall_at_1(missions, fulfilments), 2),
        "oracle_recall_at_1_at_the_end": round(oracle_recall_at_1(missions, fulfilments, lengths), 2),
    }


def log_facts(folder: Path) -> None:
    """Print what the manifest says of the test split and of the tiny CLIP."""
    results = read_manifest(folder, NAME)["results"]
    facts = results["splits"]["test"]
    clip = results["clip"]
    log(
        f"tiny CLIP: text-to-frame R@1 {clip['frame_recall_at_1']:.0f} % on fresh single frames, "
        f"upper bound {clip['frame_recall_at_1_oracle']:.0f} %"
    )
    log(
        f"upper bound of text-to-video R@1 on test: {facts['oracle_recall_at_1']:.0f} % for a model that knows which "
        f"videos fulfil a mission (each is fulfilled by {facts['videos_that_fulfil_a_mission']:.1f} videos), "
        f"{facts['oracle_recall_at_1_at_the_end']:.0f} % if it also knows that a video ends when its mission is"
    )
