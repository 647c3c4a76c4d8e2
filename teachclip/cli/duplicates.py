"""`teachclip duplicates`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from teachclip.cli.arguments import CommandParser, command, path_argument
from teachclip.console import one_line


@command
def main(argv: Sequence[str] | None = None) -> None:
    """List videos of an index that show the same."""
    parser = CommandParser(
        prog="teachclip duplicates",
        description="List the videos of an index that show the same: copies, and copies that were encoded anew. A "
        "group begins with its score, the least cosine by which a video joined it; 1 for copies of a file.",
    )
    parser.add_argument("index", type=path_argument, metavar="INDEX", help="folder that `teachclip index` made")
    parser.add_argument("--threshold", type=float, help="least cosine of two videos (default 0.98)")
    parser.add_argument("--json", action="store_true", help="print JSON with all that is known of each video")
    args = parser.parse_args(argv)
    from teachclip.errors import DataError
    from teachclip.search.duplicates import THRESHOLD, find_duplicates
    from teachclip.search.index import VideoIndex

    threshold = THRESHOLD if args.threshold is None else args.threshold
    if not 0 < threshold <= 1:
        raise DataError(f"--threshold is {threshold:g}, allowed: above 0, at most 1")
    with VideoIndex.open(args.index) as index:
        groups = find_duplicates(index, threshold=threshold)
    if args.json:
        plain = [{"score": group.score, "videos": [asdict(video) for video in group.videos]} for group in groups]
        print(json.dumps(plain, indent=1))
        return
    for group in groups:
        print(f"{group.score:.3f}")
        for video in group.videos:
            for path in video.paths:
                print(f"  {one_line(path)}")
    counted = f"{len(groups):,} {'group' if len(groups) == 1 else 'groups'}"
    print(counted if groups else "no two videos show the same", flush=True)
