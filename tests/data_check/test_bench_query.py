"""What one query costs: warm beside its tower, and cold."""

import json

import pytest

from teachclip.cli import bench
from teachclip.data_check import benchmark_query
from teachclip.data_check.benchmark_query import STARTS


@pytest.mark.slow  # it starts processes that import torch and transformers
def test_a_query_is_measured_warm_and_cold(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_query, "WARM_QUERIES", 3)
    out = tmp_path / "found.json"
    assert bench.main(["query", "--rounds", "1", "--json", str(out)]) == 0
    found, shown = json.loads(out.read_text()), capsys.readouterr().out
    assert list(found["cold"]) == list(STARTS) and all(each["cpu"] > 0 for each in found["cold"].values())
    assert {"bare text tower", "encode_text"} <= found["warm"].keys()
    for name, way in found["warm"].items():  # what is faster is no matter of a test
        assert 0 < way["low"] <= way["ms"] <= way["high"]
        assert way["of_tower"] == 1 if name.startswith("bare") else way["of_tower"] > 0
    assert "| ONNX folder, one query |" in shown


def test_an_unknown_size_is_refused(capsys):
    assert bench.main(["query", "--size", "vit-b-16"]) == 2
    assert "'vit-b-16' cannot be measured; known: tiny, vit-b-32" in capsys.readouterr().err
