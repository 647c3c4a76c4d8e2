"""Files of a finished run that were damaged: one line, and what to do about it."""

from __future__ import annotations

import json
import os

import pytest

from teachclip.cli import distill, export


def test_results_that_are_damaged_are_named_and_measured_again(project, capsys):
    recipe, path = str(project()), project.folder / "run" / "results.json"
    assert distill.main([recipe]) == 0
    sound, out = path.read_bytes(), str(project.folder / "export")
    results = json.loads(sound)
    damaged = [sound[:40], b"", b"\xff\xfe", b"[]", b"null", b"[" * 10**5, sound[:200] + b"\0" + sound[201:]]
    for change in ({"test": 3}, {"test": {}}, {"zero_shot": 3}, {"test": {**results["test"], "videos": 0}}):
        damaged.append(json.dumps({**results, **change}).encode())
    for content in damaged:
        path.write_bytes(content)
        capsys.readouterr()
        assert export.main([recipe, "--out", out]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {path} does not hold the results of a run (") and len(line) < 600
        assert line.endswith("; distil the recipe again to measure the student again") and not os.path.exists(out)
    assert distill.main([recipe]) == 0
    again = json.loads(path.read_bytes())
    assert again["test"]["t2v"] == results["test"]["t2v"] and again["zero_shot"] == results["zero_shot"]
    assert export.main([recipe, "--out", out]) == 0


@pytest.mark.parametrize("content", [b"[" * 10**5, b'{"a": [[Infinity, 1, 1, 1], "x"]}', b"\xff"])
def test_a_damaged_cache_of_hashes_is_made_anew(project, content):
    path = project.folder / "stores" / "frames" / "file-hashes.json"
    recipe = str(project())
    path.write_bytes(content)
    assert distill.main([recipe, "--dry-run"]) == 0
    assert distill.main([recipe]) == 0 and json.loads(path.read_bytes())
