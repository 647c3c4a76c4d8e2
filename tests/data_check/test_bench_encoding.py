"""What encoding costs beside its limits: every way runs, and ratios are to what bounds it."""

import json

import numpy as np
import pytest

from teachclip.cli import bench
from teachclip.data_check.benchmark_encoding import DECODING, KEYFRAMES, ratios
from teachclip.data_check.synthetic import enlarged, panned_image
from teachclip.scorer import PRECISIONS


def test_every_way_to_encode_is_measured_and_written(tmp_path, capsys):
    out = tmp_path / "found.json"
    assert bench.main(["encoding", "--files", "2", "--seconds", "1", "--rounds", "1", "--json", str(out)]) == 0
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    names = [DECODING, KEYFRAMES, *(f"{way}, {p}" for p in PRECISIONS for way in ("tower", "precompute", "evaluate"))]
    for name in names:
        assert found["frames_per_second"][name]["median"] > 0
        assert f"\n{name} " in printed
    assert found["ratios"] == ratios({name: rate["median"] for name, rate in found["frames_per_second"].items()})


def test_files_are_bounded_by_the_slower_of_tower_and_decoding():
    rates = {DECODING: 50.0}
    for precision, tower in zip(PRECISIONS, (10.0, 200.0), strict=True):
        rates |= {f"tower, {precision}": tower, f"precompute, {precision}": 5.0}
        rates |= {f"evaluate, {precision}": 8.0, f"encode files, {precision}": 9.0}
    found = ratios(rates)
    assert found["precompute, float32"] == 0.5 and found["evaluate, bfloat16"] == 0.04
    assert found["encode files, float32"] == pytest.approx(0.9)  # of the tower
    assert found["encode files, bfloat16"] == pytest.approx(0.18)  # of decoding


def test_synthetic_videos_have_the_height_that_is_asked_for():
    frames = panned_image(0, 2)
    assert all(np.array_equal(one, other) for one, other in zip(enlarged(frames, 240), frames, strict=True))
    assert [frame.shape for frame in enlarged(frames, 720)] == [(720, 960, 3)] * 2
