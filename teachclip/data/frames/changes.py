"""Which videos of a frame store are to be decoded, and which of its frames are of files that have changed since."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from teachclip.data.annotations.catalog import SHOWN, Video
from teachclip.data.video.decoding import is_transient
from teachclip.data.video.file_facts import UNREADABLE
from teachclip.errors import StoreError
from teachclip.store.array_store import ArrayStore


def rows_to_decode(
    store: ArrayStore, videos: Sequence[Video], facts: Mapping[str, Any], on_error: str, asked: Collection[str]
) -> dict[int, list[int]]:
    """Return the rows to decode, by shard: what is missing, and failures of `asked` videos that may be none any more.

    Raises StoreError, naming them, if files have changed whose frames are in the store.
    """
    held = store.provenance["videos"]
    changed = {fact["row"] for key, fact in facts.items() if fact != held[key]}
    missing, failures, remarks = store.missing_shards(), store.failures(), store.remarks()
    stale = [
        row for row in sorted(changed) if row // store.rows_per_shard not in missing and row not in failures | remarks
    ]
    if stale:
        raise _stale(store, [videos[row] for row in stale], facts)
    again = {row for row in failures | remarks if row in changed}
    again |= {row for row, reason in failures.items() if is_transient(reason)}
    if on_error == "use_decodable":
        again |= failures.keys() - remarks.keys()
    again &= {fact["row"] for key, fact in facts.items() if key in asked}
    todo = {shard: list(store.shard_rows(shard)) for shard in missing}
    for row in sorted(again):
        todo.setdefault(row // store.rows_per_shard, []).append(row)
    return dict(sorted(todo.items()))


def _stale(store: ArrayStore, videos: Sequence[Video], facts: Mapping[str, Any]) -> StoreError:
    """Return the error of frames whose files have changed since they were decoded."""

    def told(video: Video) -> str:
        held, now = store.provenance["videos"][video.id], facts[video.id]
        if now["sha256"] == UNREADABLE:
            return f"{video.id} ({video.path} cannot be read now)"
        if held["bytes"] != now["bytes"]:
            return f"{video.id} ({video.path}: {held['bytes']:,} bytes then, {now['bytes']:,} now)"
        return f"{video.id} ({video.path}: another content of the same size)"

    more = f" and {len(videos) - SHOWN} more" if len(videos) > SHOWN else ""
    return StoreError(
        f"{store.path} holds frames of {len(videos)} videos whose files have changed since they were decoded: "
        f"{', '.join(map(told, videos[:SHOWN]))}{more}; put the files back as they were, delete {store.path} to "
        "decode all again, or choose another folder (stores)"
    )
