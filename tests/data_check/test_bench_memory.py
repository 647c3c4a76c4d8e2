"""How memory grows with data: every stage is measured in two sizes."""

import json

import pytest
from processes import run_fresh

from teachclip.cli import bench


@pytest.mark.slow  # its processes import the package, as those of a user do
def test_every_stage_is_measured_with_ten_times_the_data(tmp_path, capsys):
    out = tmp_path / "found.json"
    assert bench.main(["memory", "--captions", "200", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert (found["captions"], found["videos"]) == ([200, 2000], [10, 100])
    stages = found["stages"]
    assert len(stages) == 8 and {"start", "tokenising", "evaluation: ranks"} <= stages.keys()
    assert all(5e7 < small < 2e9 and 5e7 < large < 2e9 for small, large in (s["peak_bytes"] for s in stages.values()))
    assert "200 / 10" in capsys.readouterr().out


def test_a_stage_that_takes_memory_shows_it():
    """In a process of its own: what other tests leave to be collected would hide it."""
    done = run_fresh(_WASTEFUL)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["records of captions and videos"] > found["start"] + 9e7


_WASTEFUL = """
import json, time
from teachclip.data_check import benchmark_memory
from teachclip.pipeline.benchmark_parts import made_up_split


def wasteful(captions):
    wasted = bytearray(10**8)
    wasted[::4096] = b"x" * len(wasted[::4096])
    time.sleep(0.5)  # memory is looked at every 10 ms, on a busy machine later
    return made_up_split(captions)


benchmark_memory.STEPS, benchmark_memory.made_up_split = 1, wasteful
print(json.dumps(benchmark_memory.peaks(200)))
"""
