"""Checkpoints on disk: written whole, the newest kept, later ones dropped."""

import pytest
import torch

from teachclip.errors import CheckpointError
from teachclip.training.checkpoint import (
    checkpoint_name,
    drop_after,
    keep_newest,
    load_part,
    load_state,
    newest_checkpoint,
    save_checkpoint,
)

TENSORS = {"model": {"weight": torch.arange(4.0)}}


def save(folder, step, kind="step"):
    return save_checkpoint(folder, checkpoint_name(kind, step), TENSORS, {"step": step})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back_and_is_replaced_whole(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step-00000001.tmp").mkdir()  # left by a process that was killed
    (tmp_path / ".step-00000001.tmp" / "stale").touch()
    path = save(tmp_path, 1)
    assert names(tmp_path) == ["step-00000001"] and not (path / "stale").exists()
    assert load_state(path)["step"] == 1
    assert torch.equal(load_part(path, "model")["weight"], TENSORS["model"]["weight"])


@pytest.mark.parametrize(("count", "kept"), [(1, [4]), (2, [3, 4]), (5, [1, 2, 3, 4])])
def test_the_newest_checkpoints_of_a_kind_are_kept(tmp_path, count, kept):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    save(tmp_path, 1, "best")
    keep_newest(tmp_path, "step", count=count)
    assert names(tmp_path) == ["best-00000001", *(checkpoint_name("step", step) for step in kept)]
    assert newest_checkpoint(tmp_path, "step").name == "step-00000004"


def test_checkpoints_of_later_steps_are_dropped(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    drop_after(tmp_path, "step", 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_checkpoint_that_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    path = save(tmp_path, 1)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("teachclip.training.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint: .*No space left"):
        save(tmp_path, 1)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before and names(tmp_path) == [path.name]
    assert newest_checkpoint(tmp_path, "step") == path


def test_every_file_is_flushed_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("teachclip.training.checkpoint._flush", lambda path: flushed.append(path.name))
    path = save(tmp_path, 1)
    assert sorted(flushed[:-1]) == names(path) and flushed[-1] == tmp_path.name
