"""The folder of an embedded world: videos, annotations in MSR-VTT's format, and the truth about every frame.

    videos/video0.mp4 ...   training videos first, then test videos
    annotations.json        as MSRVTT_data.json
    train.csv               video_id of the training videos; captions are in the JSON and noisy
    test.csv                key,vid_key,video_id,sentence: one clean caption per test video
    test_full.csv           video_id of the test videos: all of their clean captions in the JSON
    truth.json              what is in every frame; for diagnosis, never for training

The same settings give the same bytes, however many workers write.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from teachclip.errors import DataError
from teachclip.shapes.captions import Phrase, oracle_recall_at_1, test_caption, training_caption
from teachclip.shapes.dataset import FRAME_RATE, SHAPES, Purpose, Shot, events_of, sample_story, stream
from teachclip.shapes.presets import Preset, find_preset, preset_settings
from teachclip.shapes.rendering import write_video
from teachclip.store.files import explain_failed_write, write_atomic

TEST_CAPTIONS = 5
VIDEO_BYTES = 25_000
"""About the size of one file, for the message when the disk is full."""


@dataclass(frozen=True)
class WorldPlan:
    """Everything that the videos and captions depend on. Raises DataError if there is nothing to make."""

    train_videos: int = 700
    test_videos: int = 300
    seed: int = 0
    preset: str = "default"

    def __post_init__(self) -> None:
        for name, least in (("train_videos", 1), ("test_videos", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise DataError(f"{name} is {getattr(self, name)}; allowed: {least} or more")
        for name in ("train_videos", "test_videos") if self.numbers.twins else ():
            if getattr(self, name) % 2:
                raise DataError(
                    f"{name} is {getattr(self, name)}; allowed: even numbers, as {self.preset} makes twins"
                )

    @property
    def numbers(self) -> Preset:
        """The numbers of the preset. Raises DataError if there is none of that name."""
        return find_preset(self.preset)

    def settings(self) -> dict[str, Any]:
        """Return what identifies the world in a manifest; worlds of `default` do not name their preset."""
        return {
            **{name: getattr(self, name) for name in ("train_videos", "test_videos", "seed")},
            **preset_settings(self.preset),
        }

    @property
    def videos(self) -> int:
        """Number of videos of both splits."""
        return self.train_videos + self.test_videos


def video_id(index: int) -> str:
    """Return the id of video number `index`, as MSR-VTT writes it."""
    return f"video{index}"


def tell_world(plan: WorldPlan) -> dict[str, bytes]:
    """Return the content of every file of the world but the videos, by name."""
    preset = plan.numbers
    stories = [sample_story(plan.seed, index, preset) for index in range(plan.videos)]
    events = [events_of(story) for story in stories]
    captions: list[list[Phrase]] = []
    for index in range(plan.videos):
        if index < plan.train_videos:
            rng = stream(Purpose.TRAIN_CAPTION, plan.seed, index)
            training = events[: plan.train_videos]
            captions.append([training_caption(training, index, rng, preset) for _ in range(preset.train_captions)])
        else:
            rng = stream(Purpose.TEST_CAPTION, plan.seed, index)
            captions.append([test_caption(events[index], rng, preset) for _ in range(TEST_CAPTIONS)])
    test = range(plan.train_videos, plan.videos)
    tested = [captions[index][0] for index in test]
    rows = [(f"ret{n}", f"shapes{i}", video_id(i), captions[i][0].text) for n, i in enumerate(test)]
    return {
        "annotations.json": _json(_annotations(plan, events, captions)),
        "train.csv": _table(["video_id"], [(video_id(i),) for i in range(plan.train_videos)]),
        "test.csv": _table(["key", "vid_key", "video_id", "sentence"], rows),
        "test_full.csv": _table(["video_id"], [(video_id(i),) for i in test]),
        "truth.json": _json(_truth(plan, stories, oracle_recall_at_1([events[i] for i in test], tested))),
    }


def write_world(folder: Path, plan: WorldPlan, *, workers: int = 2, progress: bool = True) -> int:
    """Write the files of a world that are missing; returns how many videos were made.

    Drawing and encoding leave the interpreter's lock, so that threads share the cores. Raises StoreError if the disk
    is full and DataError for a number of workers below 1.
    """
    if workers < 1:
        raise DataError(f"workers is {workers}; allowed: 1 or more")
    videos = folder / "videos"
    try:
        videos.mkdir(parents=True, exist_ok=True)
        for part in videos.glob("*.part"):
            part.unlink()
        for name, content in tell_world(plan).items():
            write_atomic(folder / name, content)
    except OSError as error:
        raise explain_failed_write(error, folder, "the annotations", 1_000_000) from error
    missing = [index for index in range(plan.videos) if not (videos / f"{video_id(index)}.mp4").exists()]
    if missing:
        _write_videos(videos, plan, missing, workers=workers, progress=progress)
    return len(missing)


def _write_videos(folder: Path, plan: WorldPlan, indices: Sequence[int], *, workers: int, progress: bool) -> None:
    preset = plan.numbers
    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(write_video, folder / f"{video_id(index)}.mp4", plan.seed, index, preset) for index in indices
        ]
        try:
            done = tqdm(as_completed(jobs), total=len(jobs), desc="make videos", unit="video", disable=not progress)
            for job in done:
                job.result()
        except OSError as error:
            left = sum(not job.done() for job in jobs) + 1
            raise explain_failed_write(error, folder, f"{left} videos", left * VIDEO_BYTES) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _annotations(
    plan: WorldPlan, events: Sequence[Sequence[Any]], captions: Sequence[Sequence[Phrase]]
) -> dict[str, Any]:
    """Return what MSRVTT_data.json holds; the category is the shape of the first event."""
    videos = [
        {
            "category": SHAPES.index(events[index][0].shape),
            "url": f"shapes://{plan.seed}/{video_id(index)}",
            "video_id": video_id(index),
            "start time": 0.0,
            "end time": plan.numbers.frames / FRAME_RATE,
            "split": "train" if index < plan.train_videos else "test",
            "id": index,
        }
        for index in range(plan.videos)
    ]
    texts = [(video_id(index), phrase.text) for index, phrases in enumerate(captions) for phrase in phrases]
    sentences = [{"caption": text, "video_id": name, "sen_id": number} for number, (name, text) in enumerate(texts)]
    info = {"contributor": "teachclip", "version": "1", "description": "The embedded world of shapes"}
    return {"info": info, "videos": videos, "sentences": sentences}


def _truth(plan: WorldPlan, stories: Sequence[Sequence[Shot]], ceiling: float) -> dict[str, Any]:
    codes = {"event": "e", "distractor": "d", "empty": "-"}
    shares = dict.fromkeys(codes, 0.0)
    videos = {}
    for index, shots in enumerate(stories):
        start, events = 0, []
        for shot in shots:
            shares[shot.kind] += shot.length / (plan.numbers.frames * plan.videos)
            if shot.kind == "event" and shot.event is not None:
                events.append({**asdict(shot.event), "start": start, "stop": start + shot.length})
            start += shot.length
        frames = "".join(codes[shot.kind] * shot.length for shot in shots)
        videos[video_id(index)] = {"frames": frames, "events": events}
    return {
        "codes": {code: kind for kind, code in codes.items()},
        "shares": {kind: round(share, 4) for kind, share in shares.items()},
        "oracle_recall_at_1": round(ceiling, 2),
        "videos": videos,
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue().encode()
