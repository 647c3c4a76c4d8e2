"""DiDeMo (Hendricks et al., ICCV 2017) for paragraph retrieval, as CLIP4Clip, X-CLIP, TS2-Net and TeachCLIP use it.

`annotations` is the folder that holds, for each split, {train,val,test}_data.json (a list of objects with `video` and
`description`, in the order of the story) and {train,val,test}_list.txt (one video per line); `train`, `validation`
and `test` may give other lists. Videos are named with the extension of their file or without it.

The descriptions of a video, joined by spaces in the order of the JSON, are its one caption. A video is its file from
0 to 31 seconds, as in the published loaders, which read the frame of second 31 too; annotators saw 30 seconds. The
field `times` is not used. As published, listed videos without description are not used; they count as missing.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from teachclip.data.annotations.files import EXTENSIONS
from teachclip.data.annotations.records import Annotations, Caption, Segment
from teachclip.data.formats.published import captions_of, check_texts, list_file, read_ids, require_folder
from teachclip.data.formats.tables import check_entries, kind_of, read_json
from teachclip.errors import DataError

SECONDS = 31.0
NAMES = {"train": "train", "val": "validation", "test": "test"}
"""What the splits of the files are called here."""


def read(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read descriptions and lists. Ids are file names without extension. Raises DataError, naming line or entry."""
    require_folder(annotations, "train_data.json and train_list.txt")
    sources: dict[str, Path] = {}
    paragraphs: dict[str, str] = {}
    for split in NAMES:
        path = list_file(annotations, f"{split}_data.json", None)
        for video, text in _paragraphs(path).items():
            if video in paragraphs:
                raise DataError(f"{path}: video {video!r} is also in {sources[video].name}")
            paragraphs[video], sources[video] = text, path
    captions: list[list[Caption]] = []
    excluded: dict[str, dict[str, str]] = {}
    for split, custom in zip(NAMES, (train, validation, test), strict=True):
        ids = read_ids(list_file(annotations, f"{split}_list.txt", custom), _stem)
        source, out = annotations / f"{split}_data.json", excluded.setdefault(NAMES[split], {})
        captions.append(captions_of(ids, paragraphs, source, lambda where, text: [text], out))
    videos = {caption.video_id for split_captions in captions for caption in split_captions}
    segments = {video: Segment(video, None, SECONDS) for video in videos}
    return Annotations(captions[0], captions[1], captions[2], segments, excluded)


def _paragraphs(path: Path) -> dict[str, str]:
    """Return the joined descriptions of each video."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{path} must hold a list of objects, found {kind_of(entries)}")
    sentences: dict[str, list[str]] = {}
    for number, entry in enumerate(check_entries(f"{path}: entry ", entries, ["video", "description"])):
        (text,) = check_texts(f"{path}: entry [{number}], 'description'", [entry["description"]])
        sentences.setdefault(_stem(entry["video"].strip()), []).append(text)
    return {video: " ".join(texts) for video, texts in sentences.items()}


def _stem(name: str) -> str:
    """Return the name of a file without the extension of a video; others are parts of a name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in EXTENSIONS else name
