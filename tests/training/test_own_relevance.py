"""Each process reads the relevance of its own pairs; the losses are those of reading all of it."""

from pathlib import Path

import numpy as np
import pytest
from processes import start
from tiny import CAPTIONS, FRAMES, VIDEOS

from teachclip.store.array_store import ArraySpec, ArrayStore

SUPPORT = Path(__file__).parents[1] / "support"
TEXTS, VIEWS = CAPTIONS * VIDEOS, 2


def write(path, precision, *, frames):
    """Store random relevance of two views of each video."""
    state = np.random.RandomState(len(path.name))
    arrays = {"video_text": 5 * state.standard_normal((TEXTS, VIEWS * VIDEOS))}
    if frames:
        arrays["frame_text"] = state.dirichlet(np.ones(FRAMES), (TEXTS, VIEWS))
    specs = {name: ArraySpec(precision, array.shape[1:]) for name, array in arrays.items()}
    store = ArrayStore.open_or_create(path, provenance={"of": "test"}, arrays=specs, rows=TEXTS, rows_per_shard=7)
    for shard in store.missing_shards():
        rows = list(store.shard_rows(shard))
        store.write_shard(shard, {name: array[rows].astype(precision) for name, array in arrays.items()})


@pytest.mark.parametrize("count", [1, 2])
def test_losses_and_gradients_are_those_of_reading_all_to_the_bit(tmp_path, count):
    write(tmp_path / "float16", "float16", frames=True)
    write(tmp_path / "float32", "float32", frames=False)
    done = start(SUPPORT / "own_relevance.py", tmp_path, processes=count, paths=[SUPPORT]).finish()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for index in range(count):
        assert f"{index} same True" in lines
        # of both arrays, of video_text alone where targets of videos stay in memory, and of a teacher without frames
        assert f"{index} read {' '.join([str(8 // count)] * 4)}" in lines
