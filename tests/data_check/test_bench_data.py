import json

import pytest

from teachclip.cli.bench_data import main
from teachclip.data_check import benchmark
from teachclip.data_check.benchmark import Timing, summarise


def test_bench_prints_ratios_of_one_run_and_writes_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("teachclip.data_check.synthetic.DISTINCT", 2)
    monkeypatch.setattr(benchmark, "STORE_SECONDS", 0.1)
    out = tmp_path / "bench.json"
    assert main(["--kind", "small", "--files", "6", "--processes", "1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("machine: processor", "6 decoded, 0 failed", "against bare decord", "stored frames", "memory"):
        assert words in printed, printed
    report = json.loads(out.read_text())
    assert report["count"] == len(report["files"]) == 6
    rates = report["frames_per_second"]
    assert report["decode_ratio"] == pytest.approx(rates["decode"] / rates["bare"]) and min(rates.values()) > 0


def test_bench_reads_your_own_files_and_names_those_that_fail(tmp_path, capsys):
    assert main(["--videos", str(tmp_path)]) == 2
    assert "contains no video" in capsys.readouterr().err
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 100)
    assert main(["--videos", str(tmp_path), "--files", "1", "--processes", "1"]) == 2
    assert "junk.mp4" in capsys.readouterr().err


def test_rates_are_those_of_one_process_and_memory_that_of_the_busiest_worker():
    timings = [Timing(1, 10, 0.5, 1.0, 2.0, 100_000_000 + 1_000_000 * n) for n in range(20)]
    found = summarise([*timings, Timing(2, 10, 0.5, 1.0, 2.0, 500_000_000)], store_rate=100.0)
    assert found["frames_per_second"] == {"bare": 20, "decode": 10, "whole": 5, "store": 100}
    assert found["decode_ratio"] == 0.5 and found["store_ratio"] == 20
    assert found["memory_mb"] == {"files": 20, "tenths": list(range(101, 120, 2)), "peak": 500}
