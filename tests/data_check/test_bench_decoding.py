"""What decoding costs by height and processes: every way runs, and the table has a row for each."""

import json

import pytest

from teachclip.cli import bench
from teachclip.data_check.benchmark_decoding import WAYS, table


@pytest.mark.slow  # its processes import the package, as those of a user do
def test_every_way_to_decode_is_measured_and_files_are_kept(tmp_path, capsys):
    sizes = ["--heights", "240", "360", "--files", "1", "--seconds", "1", "--rounds", "1", "--processes", "1"]
    out = tmp_path / "found.json"
    assert bench.main(["decoding", *sizes, "--folder", str(tmp_path), "--json", str(out)]) == 0
    found = json.loads(out.read_text())["frames_per_second"]
    assert list(found) == ["240", "360"] and all(list(ways) == list(WAYS) for ways in found.values())
    assert all(each["1"]["low"] > 0 for ways in found.values() for each in ways.values())
    assert capsys.readouterr().out.count("\n| 360 |") == len(WAYS)
    written = (tmp_path / "240-1" / "0.mp4").stat().st_mtime_ns
    assert bench.main(["decoding", *sizes, "--folder", str(tmp_path)]) == 0
    assert (tmp_path / "240-1" / "0.mp4").stat().st_mtime_ns == written


def test_rates_of_more_processes_are_beside_those_of_the_first():
    rate = {str(n): {"median": 100.0 * n, "low": 90.0, "high": 210.0} for n in (1, 2)}
    head = {"machine": {"cores": 2}, "seconds": 10, "rounds": 3, "processes": [1, 2]}
    lines = table({**head, "frames_per_second": {"720": {"keyframes": rate}}})
    assert lines[-1] == "| 720 | keyframes | 100 (90 - 210) | 200 (90 - 210) | 2.00 |"
