"""What training steps cost: every way to make one runs, and the table says what was measured."""

import json

import numpy as np
import pytest
import torch
from tiny_models import tiny_clip

from teachclip.cli import bench
from teachclip.pipeline import benchmark
from teachclip.pipeline.benchmark import BASE, DEFAULT_SIDES, OFFICIAL, benchmark_steps, table
from teachclip.pipeline.benchmark_limits import compiled, count_operations, matmul_rate
from teachclip.pipeline.benchmark_parts import made_up_relevance

SMALL = ["--captions", "400", "--batch-size", "8", "--steps", "1", "--rounds", "1"]


def test_every_way_to_make_a_step_is_measured_and_written(tmp_path, capsys):
    files = ["--json", str(tmp_path / "found.json"), "--figure", str(tmp_path / "steps.png")]
    assert bench.main([*SMALL, "--folder", str(tmp_path), *files]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["sides"]) == list(DEFAULT_SIDES)
    assert (found["captions"], found["videos"], found["steps"]) == (400, 20, 1)
    for side in found["sides"].values():
        assert side["seconds"] > 0 and side["pairs_per_second"] == pytest.approx(8 / side["seconds"])
        assert side["wait_share"] + side["optimizer_share"] < 1
        assert 0 < side["matmul_share"] < 1 and side["peak_bytes"] > 1e8
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in DEFAULT_SIDES) and max(map(len, shown.splitlines())) < 145
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.glob("relevance-400x20-*"))) == 4


def test_operations_are_counted_and_products_of_matrices_timed():
    matrix = torch.ones(8, 16)
    assert count_operations(lambda: matrix @ matrix.T) == 2 * 8 * 16 * 8
    assert matmul_rate(torch.device("cpu"), torch.float32) > 1e8


def test_encoders_are_compiled_until_the_block_ends():
    clip, calls = tiny_clip(), []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    ids = torch.tensor([[0, 1, 2]])
    plain = clip.get_text_features(ids).pooler_output
    with compiled(clip, backend=backend):
        torch.testing.assert_close(clip.get_text_features(ids).pooler_output, plain)
        assert calls
    count = len(calls)
    clip.get_text_features(torch.tensor([[0, 1, 2, 3]]))
    assert len(calls) == count


def test_ratios_are_to_the_student_alone_and_to_the_official_order():
    rest = {"matmul_share": 0, "peak_bytes": 0}
    side = {
        **rest,
        "low": 1,
        "high": 1,
        "cpu_seconds": 1,
        "pairs_per_second": 1,
        "wait_share": 0.1,
        "optimizer_share": 0,
    }
    head = {"size": "x", "device": "cpu", "threads": 1, "batch_size": 1, "captions": 1, "videos": 1, "steps": 1}
    times = {BASE: 2.0, "1 stored": 3.0, OFFICIAL: 12.0}
    shown = table({**head, "sides": {name: {**side, "seconds": seconds} for name, seconds in times.items()}})
    row = next(line for line in shown.splitlines() if line.startswith("1 stored"))
    assert "1.50x" in row and "4.00x" in row and "10.0%" in row


def test_what_cannot_be_measured_is_named(capsys):
    assert bench.main([*SMALL, "--sides", "3 storde"]) == 2
    assert "'3 storde' cannot be measured" in capsys.readouterr().err
    assert bench.main(["--size", "vit-b-16"]) == 2
    assert "did you mean vit-b-32" in capsys.readouterr().err


def test_a_picture_that_cannot_be_drawn_is_refused_before_measuring(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "can_draw", lambda: False)
    monkeypatch.setattr(benchmark.Parts, "make", lambda *args, **options: pytest.fail("measures"))
    assert bench.main([*SMALL, "--figure", str(tmp_path / "steps.png")]) == 2
    assert "pip install 'teachclip[report]'" in capsys.readouterr().err


def test_the_numbers_are_written_before_the_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "draw_steps", lambda *args: 1 / 0)
    files = ["--json", str(tmp_path / "found.json"), "--figure", str(tmp_path / "steps.png")]
    with pytest.raises(ZeroDivisionError):
        bench.main([*SMALL, "--sides", BASE, *files])
    assert list(json.loads((tmp_path / "found.json").read_text())["sides"]) == [BASE]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["memory", "--captions", "10"],
            "10 captions are too few for a batch of 120; allowed: at least 120, 20 a video",
        ),
        (
            ["steps", "--captions", "30"],
            "30 captions are too few for a batch of 24; allowed: at least 40, 20 a video",
        ),
    ],
)
def test_the_least_count_of_captions_is_said(arguments, message, capsys):
    assert bench.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["encoding", "--sides", BASE, "--captions", "400"],
            "--sides, --captions: not of `bench encoding`, which has",
        ),
        (["encoding", "--figure", "a.png"], "--figure: not of `bench encoding`"),
        (["--files", "2"], "--files: not of `bench steps`, which has --size, --rounds"),
        (["steps", "--height", "2", "--seconds", "3"], "--height, --seconds: not of `bench steps`"),
        (
            ["memory", "--size", "vit-b-32", "--batch-size", "8", "--rounds", "2", "--threads", "1"],
            "--size, --rounds, --threads, --batch-size: not of `bench memory`, which has --captions",
        ),
        (["decoding", "--size", "tiny", "--batch-size", "8"], "--size, --batch-size: not of `bench decoding`"),
        (["query", "--batch-size", "8"], "--batch-size: not of `bench query`, which has --size, --rounds, --threads"),
    ],
)
def test_an_option_of_the_other_measurement_is_refused(arguments, message, monkeypatch, capsys):
    for name in ("pipeline.benchmark.benchmark_steps", "data_check.benchmark_encoding.benchmark_encoding"):
        monkeypatch.setattr(f"teachclip.{name}", lambda *args, **options: pytest.fail("measures"))
    assert bench.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_made_up_relevance_is_kept(tmp_path):
    first = made_up_relevance(tmp_path, 600, 30, 1)
    again = made_up_relevance(tmp_path, 600, 30, 1)
    rows = np.array([0, 599])
    assert np.array_equal(first.read("video_text", rows), again.read("video_text", rows))
    assert first.read("video_text", rows).std() > 1
    assert first.read("frame_text", rows).sum(1) == pytest.approx([1, 1], abs=1e-2)


def test_the_sides_that_are_asked_for_are_measured_alone(tmp_path, capsys):
    options = {"captions": 400, "batch_size": 4, "steps": 1, "rounds": 2, "folder": tmp_path}
    found = benchmark_steps(sides=["1 stored", BASE], **options)
    assert list(found["sides"]) == ["1 stored", BASE]
    capsys.readouterr()
