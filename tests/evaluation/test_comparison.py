"""Two models on the same queries."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from teachclip.cli import compare as command
from teachclip.errors import DataError
from teachclip.evaluation.comparison import compare
from teachclip.evaluation.per_query import PerQuery, read_per_query, write_per_query


def results(ranks: np.ndarray, captions: int = 1) -> PerQuery:
    """Results of `captions` captions for each video, whose video-to-text ranks are all 1."""
    videos = [f"v{number // captions}" for number in range(len(ranks))]
    own = sorted(set(videos))
    return PerQuery(
        direction=["t2v"] * len(ranks) + ["v2t"] * len(own),
        query=[f"c{number}" for number in range(len(ranks))] + own,
        video=videos + own,
        text=["a"] * len(ranks) + [""] * len(own),
        rank=[*map(int, ranks), *[1] * len(own)],
        score=[0.5] * (len(ranks) + len(own)),
    )


def test_the_difference_its_interval_and_p_are_those_of_all_exchanges() -> None:
    first = np.array([1, 1, 9, 9, 9, 9, 9, 9])
    second = np.array([1, 9, 1, 1, 1, 1, 9, 9])
    found = {(item.direction, item.metric): item for item in compare(results(first), results(second))}
    item = found["t2v", "recall_at_1"]
    assert (item.first, item.second, item.difference) == (25.0, 62.5, 37.5)
    gain = (second == 1).astype(int) - (first == 1)
    sums = [abs(np.dot(signs, gain)) for signs in product((-1, 1), repeat=8)]
    assert item.p == pytest.approx(np.mean(np.array(sums) >= abs(gain.sum())), abs=0.03)
    assert item.low <= 0 < item.difference < item.high
    same = found["v2t", "recall_at_1"]
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_captions_of_a_video_go_together() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(1, 3, 60) for _ in range(2))
    once = compare(results(first), results(second))[0]
    five = compare(results(np.repeat(first, 5), 5), results(np.repeat(second, 5), 5))[0]
    assert five.queries == 300 and five.videos == 60
    assert (five.difference, five.p) == pytest.approx((once.difference, once.p), abs=0.05)
    assert five.high - five.low == pytest.approx(once.high - once.low, rel=0.1)


def test_other_queries_are_refused_and_the_order_does_not_matter() -> None:
    ours = results(np.arange(1, 9))
    backwards = replace(ours, **{name: getattr(ours, name)[::-1] for name in vars(ours)})
    assert all(item.difference == 0 for item in compare(ours, backwards))
    with pytest.raises(DataError, match=r"t2v: the two files are of other queries \(8 and 7, 7 in both\)"):
        compare(ours, results(np.arange(1, 8)))


def test_files_are_read_as_they_were_written_and_others_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{name}.parquet" for name in ("a", "b")]
    for path, ranks in zip(paths, (np.arange(1, 9), np.arange(8, 0, -1)), strict=True):
        write_per_query(path, results(ranks))
        assert read_per_query(path) == results(ranks)
    assert command.main([*map(str, paths), "--out", str(tmp_path / "difference.json")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[2].startswith("| text to video | R@1") and len(shown) == 8
    assert (tmp_path / "difference.json").exists()
    (tmp_path / "junk.parquet").write_bytes(b"junk" * 10)
    for other in ("junk.parquet", "nowhere.parquet"):
        assert command.main([str(paths[0]), str(tmp_path / other)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {tmp_path / other}: ")
