"""Videos of one split that another split has too, by their files. The same id in two splits is an error elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from teachclip.data.annotations.catalog import Catalog, Video


class Overlap(NamedTuple):
    """One file, or files of the same content, in several splits: the split and id of every video of them."""

    videos: tuple[tuple[str, str], ...]
    same_file: bool

    @property
    def message(self) -> str:
        """Say which videos are the same, naming two per split."""
        parts = []
        for split in dict.fromkeys(split for split, _ in self.videos):
            ids = [video_id for name, video_id in self.videos if name == split]
            more = f" and {len(ids) - 2} more" if len(ids) > 2 else ""
            parts.append(f"{split} {', '.join(map(repr, ids[:2]))}{more}")
        return f"{' and '.join(parts)} are {'parts of one file' if self.same_file else 'files of the same content'}"


def overlaps(catalog: Catalog, facts: Mapping[str, Mapping[str, Any]]) -> list[Overlap]:
    """Return the files that are in more than one split, in the order of the catalogue.

    `facts`: `sha256` of the file of each video, by video id, as `teachclip.data.video.file_facts` returns them. A
    file that is absent from them or could not be read is compared by its path alone.
    """
    groups: dict[str, list[tuple[str, Video]]] = {}
    for split in catalog.splits:
        for video in split.videos:
            sha256 = facts.get(video.id, {}).get("sha256", "unreadable")
            key = str(video.path) if sha256 == "unreadable" else sha256
            groups.setdefault(key, []).append((split.name, video))
    return [
        Overlap(tuple((name, video.id) for name, video in group), len({video.path for _, video in group}) == 1)
        for group in groups.values()
        if len({name for name, _ in group}) > 1
    ]


def describe_overlaps(found: Sequence[Overlap]) -> list[str]:
    """Return one line that says how many files are in several splits and names the first; none if there are none."""
    if not found:
        return []
    count = "1 file is" if len(found) == 1 else f"{len(found):,} files are"
    more = "" if len(found) == 1 else f" and {len(found) - 1:,} more"
    return [f"{count} in more than one split: {found[0].message}{more}"]
