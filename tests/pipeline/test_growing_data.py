"""Data that grows and shrinks between runs: what is there is kept, and the same as if all had been made anew."""

from __future__ import annotations

import numpy as np
import pytest
from runs import relevance_store
from video_files import write_video

from teachclip.cli import distill, precompute


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def growing(project):
    """Return a function that writes the recipe of videos 0 to 13 but for some, with captions of one's own."""
    project.fill = False
    (project.folder / "videos").mkdir()
    for number in range(14):
        write_video(project.folder / "videos" / f"clip{number}.mp4", frames=12, seed=number)

    def write(name, *, without=(), texts=(), **sections):
        rows = ["video,caption,split"]
        for number in sorted(set(range(14)) - set(without)):
            split = "test" if number < 2 else "validation" if number < 4 else "train"
            captions = [f"a red circle on {'blue ' * (number % 5)}square", *[t for n, t in texts if n == number]]
            rows += [f"clip{number}.mp4,{caption},{split}" for caption in captions]
        path = project.folder / f"{name}.csv"
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        data = {"videos": str(project.folder / "videos"), "annotations": str(path), "validation": None}
        return project(f"{name}.yaml", data=data, output=str(project.folder / name), **sections)

    return write


@pytest.mark.parametrize("views", [1, 2])
def test_new_videos_and_captions_alone_are_computed(project, growing, caplog, views):
    frames = {"temporal_augmentation": views}
    assert run(precompute.main, growing("before", without=[12, 13], frames=frames)) == 0
    later = {"without": [5], "texts": [(6, "a blue square"), (12, "two circles")], "frames": frames}
    with caplog.at_level("INFO"):
        caplog.clear()
        assert run(precompute.main, growing("later", **later)) == 0
    said = [message.split(": ", 1)[1] for message in caplog.messages if " left, " in message]
    assert said.count(f"{2 * views} videos are new, {views} left, {7 * views} kept") >= 2  # features and tokens
    assert "2 videos are new, 1 left, 11 kept" in said  # frames
    fresh = growing("fresh", stores=str(project.folder / "fresh-stores"), **later)
    assert run(precompute.main, fresh) == 0
    folder = "xpool" if views == 1 else f"xpool-views{views}"
    new = relevance_store(project.folder / "fresh-stores", folder)
    stores = sorted((project.folder / "stores" / f"relevance-{folder}").glob("*/manifest.json"))
    assert len(stores) == 2 and new.path.name in {path.parent.name for path in stores}
    grown = type(new).open(project.folder / "stores" / f"relevance-{folder}" / new.path.name)
    for name in new.arrays:
        one, other = (store.read(name, slice(None)).astype(np.float32) for store in (grown, new))
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)  # float16, and batches of other sizes
    assert run(precompute.main, project.folder / "later.yaml", "--verify") == 0
    assert run(distill.main, project.folder / "later.yaml") == 0


def test_a_removed_video_costs_nothing_and_its_return_neither(project, growing):
    whole, less = growing("whole"), growing("less", without=[5, 9])
    assert run(precompute.main, whole) == 0
    before = {path: path.stat().st_mtime_ns for path in (project.folder / "stores").rglob("*-0*.npy")}
    for recipe in (less, whole):
        assert run(precompute.main, recipe, "--verify") == 0
    assert before == {path: path.stat().st_mtime_ns for path in (project.folder / "stores").rglob("*-0*.npy")}
    assert run(distill.main, less) == 0
