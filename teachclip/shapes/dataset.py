"""The folder of a Shapes dataset: videos, annotations in MSR-VTT's format, ground truth, and a tiny CLIP.

    videos/video0.mp4 ...   training videos first, then test videos
    annotations.json        as MSRVTT_data.json
    train.csv               video_id of the training videos; their captions are in annotations.json and noisy
    test.csv                key,vid_key,video_id,sentence: one clean caption per test video
    test_full.csv           video_id of the test videos: all of their clean captions are in annotations.json
    truth.json              what every frame shows; for diagnosis, never for training
    clip/                   the tiny CLIP, for transformers
    manifest.json           the settings and results; written last

The same settings give the same bytes, however many workers write.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from teachclip.data.video.writing import ENCODER
from teachclip.datasets.folder import MANIFEST, begin, check_folder, complete, read_record
from teachclip.errors import DataError
from teachclip.shapes import pretraining
from teachclip.shapes.captions import Phrase, oracle_recall_at_1, test_caption, training_caption
from teachclip.shapes.presets import Preset, find_preset, preset_settings
from teachclip.shapes.rendering import write_video
from teachclip.shapes.scenes import FRAME_RATE, SHAPES, Purpose, Shot, events_of, sample_video, stream
from teachclip.store.files import explain_failed_write, locked_folder, write_atomic

TEST_CAPTIONS = 5
VIDEO_BYTES = 25_000
"""Approximate size of one file, for the message when the disk is full."""
CLIP_RECORD = "pretraining.json"
VERSION = 2
CLIP_FILES = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", CLIP_RECORD)
ANNOTATION_FILES = ("annotations.json", "train.csv", "test.csv", "test_full.csv", "truth.json")
FRAME_CODES = {"event": "e", "distractor": "d", "empty": "-"}
"""The character of each kind of frame in truth.json."""


@dataclass(frozen=True)
class ShapesSettings:
    """Everything that the videos and captions depend on. Raises DataError if a value is not allowed."""

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
        """The numbers of the preset. Raises DataError if the preset is unknown."""
        return find_preset(self.preset)

    def record(self) -> dict[str, Any]:
        """Return what identifies the dataset in its manifest; the preset `default` is not named there."""
        return {
            **{name: getattr(self, name) for name in ("train_videos", "test_videos", "seed")},
            **preset_settings(self.preset),
        }

    @property
    def videos(self) -> int:
        """Number of videos of both splits."""
        return self.train_videos + self.test_videos


def make_shapes(
    folder: str | Path,
    *,
    preset: str = "default",
    train_videos: int | None = None,
    test_videos: int | None = None,
    seed: int = 0,
    clip_seed: int = 0,
    workers: int = 2,
    clip: pretraining.PretrainingSettings | None = None,
    clip_from: str | Path | None = None,
    progress: bool = True,
) -> bool:
    """Make the missing files of a Shapes dataset in `folder`. Returns whether any were missing.

    `preset`: a name in `PRESETS`, which also gives the numbers of videos that are None. `seed` determines videos and
    captions, `clip_seed` the tiny CLIP. `clip`: other settings of its pre-training, in place of the defaults with
    `clip_seed`. `clip_from`: the folder of another Shapes dataset whose CLIP is copied, as all seeds of an experiment
    should start from one CLIP. Raises DataError if the folder contains something else or the preset is unknown, and
    StoreError if the folder cannot be written.
    """
    numbers = find_preset(preset)
    dataset = ShapesSettings(
        numbers.train_videos if train_videos is None else train_videos,
        numbers.test_videos if test_videos is None else test_videos,
        seed,
        preset,
    )
    if workers < 1:
        raise DataError(f"workers is {workers}; allowed: 1 or more")
    clip = clip or pretraining.PretrainingSettings(seed=clip_seed)
    clip_settings = asdict(clip) if clip_from is None else _clip_record(Path(clip_from) / "clip")["settings"]
    settings = {"version": VERSION, "dataset": dataset.record(), "encoder": dict(ENCODER), "clip": clip_settings}
    root = Path(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        check_folder(root, settings, "Shapes")  # before the lock, which leaves a file in the folder
        with locked_folder(root):
            check_folder(root, settings, "Shapes")
            if (root / MANIFEST).exists() and _is_complete(root, dataset):
                return False
            begin(root, settings)
            write_dataset(root, dataset, workers=workers, progress=progress)
            if not _has_clip(root / "clip"):
                _make_clip(root / "clip", clip, clip_from, progress)
            _write_manifest(root, settings)
    except OSError as error:
        raise explain_failed_write(error, root, "the Shapes dataset", 50_000_000) from error
    return True


def write_dataset(folder: Path, settings: ShapesSettings, *, workers: int = 2, progress: bool = True) -> int:
    """Write the annotations and the missing videos of a dataset. Returns how many videos were written.

    Drawing and encoding release the interpreter's lock, so threads share the cores. Raises StoreError if the disk is
    full and DataError if `workers` is below 1.
    """
    if workers < 1:
        raise DataError(f"workers is {workers}; allowed: 1 or more")
    videos = folder / "videos"
    try:
        videos.mkdir(parents=True, exist_ok=True)
        for unfinished in videos.glob("*.part"):
            unfinished.unlink()
        for name, content in annotation_files(settings).items():
            write_atomic(folder / name, content)
    except OSError as error:
        raise explain_failed_write(error, folder, "the annotations", 1_000_000) from error
    missing = [index for index in range(settings.videos) if not (videos / f"{video_id(index)}.mp4").exists()]
    if missing:
        _write_videos(videos, settings, missing, workers=workers, progress=progress)
    return len(missing)


def video_id(index: int) -> str:
    """Return the id of video number `index`, as MSR-VTT writes it."""
    return f"video{index}"


def annotation_files(settings: ShapesSettings) -> dict[str, bytes]:
    """Return the content of every file of the dataset but the videos and the CLIP, by name."""
    preset = settings.numbers
    videos = [sample_video(settings.seed, index, preset) for index in range(settings.videos)]
    events = [events_of(shots) for shots in videos]
    captions: list[list[Phrase]] = []
    for index in range(settings.videos):
        if index < settings.train_videos:
            rng = stream(Purpose.TRAIN_CAPTION, settings.seed, index)
            training = events[: settings.train_videos]
            captions.append([training_caption(training, index, rng, preset) for _ in range(preset.train_captions)])
        else:
            rng = stream(Purpose.TEST_CAPTION, settings.seed, index)
            captions.append([test_caption(events[index], rng, preset) for _ in range(TEST_CAPTIONS)])
    test = range(settings.train_videos, settings.videos)
    queries = [captions[index][0] for index in test]
    rows = [(f"ret{n}", f"shapes{i}", video_id(i), captions[i][0].text) for n, i in enumerate(test)]
    return {
        "annotations.json": _json(_annotations(settings, events, captions)),
        "train.csv": table_bytes(["video_id"], [(video_id(i),) for i in range(settings.train_videos)]),
        "test.csv": table_bytes(["key", "vid_key", "video_id", "sentence"], rows),
        "test_full.csv": table_bytes(["video_id"], [(video_id(i),) for i in test]),
        "truth.json": _json(_truth(settings, videos, oracle_recall_at_1([events[i] for i in test], queries))),
    }


def _annotations(
    settings: ShapesSettings, events: Sequence[Sequence[Any]], captions: Sequence[Sequence[Phrase]]
) -> dict[str, Any]:
    """Return the content of MSRVTT_data.json; the category is the shape of the first event."""
    videos = [
        {
            "category": SHAPES.index(events[index][0].shape),
            "url": f"shapes://{settings.seed}/{video_id(index)}",
            "video_id": video_id(index),
            "start time": 0.0,
            "end time": settings.numbers.frames / FRAME_RATE,
            "split": "train" if index < settings.train_videos else "test",
            "id": index,
        }
        for index in range(settings.videos)
    ]
    texts = [(video_id(index), phrase.text) for index, phrases in enumerate(captions) for phrase in phrases]
    sentences = [{"caption": text, "video_id": name, "sen_id": number} for number, (name, text) in enumerate(texts)]
    # The description keeps its first wording, so that the file keeps its bytes and stores made from it stay valid.
    info = {"contributor": "teachclip", "version": "1", "description": "The embedded world of shapes"}
    return {"info": info, "videos": videos, "sentences": sentences}


def _truth(settings: ShapesSettings, videos: Sequence[Sequence[Shot]], oracle_recall: float) -> dict[str, Any]:
    """Return the content of truth.json: a character per frame, the events, and the shares of the kinds of frames."""
    shares = dict.fromkeys(FRAME_CODES, 0.0)
    truth = {}
    for index, shots in enumerate(videos):
        start, events = 0, []
        for shot in shots:
            shares[shot.kind] += shot.length / (settings.numbers.frames * settings.videos)
            if shot.kind == "event" and shot.event is not None:
                events.append({**asdict(shot.event), "start": start, "stop": start + shot.length})
            start += shot.length
        frames = "".join(FRAME_CODES[shot.kind] * shot.length for shot in shots)
        truth[video_id(index)] = {"frames": frames, "events": events}
    return {
        "codes": {code: kind for kind, code in FRAME_CODES.items()},
        "shares": {kind: round(share, 4) for kind, share in shares.items()},
        "oracle_recall_at_1": round(oracle_recall, 2),
        "videos": truth,
    }


def _write_videos(
    folder: Path, settings: ShapesSettings, indices: Sequence[int], *, workers: int, progress: bool
) -> None:
    preset = settings.numbers
    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(write_video, folder / f"{video_id(index)}.mp4", settings.seed, index, preset)
            for index in indices
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


def _is_complete(folder: Path, settings: ShapesSettings) -> bool:
    files = [*ANNOTATION_FILES, *(f"videos/{video_id(index)}.mp4" for index in range(settings.videos))]
    return all((folder / name).exists() for name in files) and _has_clip(folder / "clip")


def _has_clip(folder: Path) -> bool:
    return all((folder / name).exists() for name in CLIP_FILES)


def _clip_record(folder: Path) -> dict[str, Any]:
    if not _has_clip(folder):
        raise DataError(f"{folder} holds no tiny CLIP to copy; give the folder of a complete Shapes dataset")
    return read_record(folder / CLIP_RECORD, "Shapes")


def _make_clip(
    folder: Path, settings: pretraining.PretrainingSettings, source: str | Path | None, progress: bool
) -> None:
    """Pre-train or copy the tiny CLIP; the folder appears when it is complete."""
    temporary = folder.with_name("clip.part")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    if source is not None:
        shutil.copytree(Path(source) / "clip", temporary)
    else:
        temporary.mkdir()
        results = pretraining.pretrain_clip(temporary, settings, progress=progress)
        record = {"settings": asdict(settings), "results": results}
        (temporary / CLIP_RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.replace(temporary, folder)


def _write_manifest(folder: Path, settings: Mapping[str, Any]) -> None:
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    results = {"oracle_recall_at_1": truth["oracle_recall_at_1"], "clip": _clip_record(folder / "clip")["results"]}
    complete(folder, settings, results)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()


def table_bytes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    """Return a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue().encode()
