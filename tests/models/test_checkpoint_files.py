"""Opening checkpoint files: safely, and naming what is wrong with them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import check_finite, check_state, describe_checkpoint, load_tensors, to_float32

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2, dtype=torch.float16)}


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_tensors(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pth", "a.safetensors"])
def test_state_dicts_are_read_from_all_kinds_of_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file(STATE, path) if name.endswith("safetensors") else torch.save(STATE, path)
    found = load_tensors(path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


def test_the_state_dict_of_a_container_is_taken_without_stale_entries(tmp_path: Path) -> None:
    stale = {"clip.text_model.embeddings.position_ids": torch.arange(3), "input_resolution": torch.tensor(224)}
    content = {
        "epoch": 3,
        "state_dict": {**STATE, **stale},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(content, tmp_path / "model_best.pth")
    assert load_tensors(tmp_path / "model_best.pth").keys() == STATE.keys()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "no such checkpoint file" in error_of(tmp_path / "none.bin")


@pytest.mark.parametrize("name", ["a.bin", "a.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    big = {"weight": torch.randn(200, 200)}
    save_file(big, path) if name.endswith("safetensors") else torch.save(big, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert ("the file is empty" if share == 0 else "is truncated or not a checkpoint") in error_of(path)


class Trap:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, plain_pickle: bool) -> None:
    path, sprung = tmp_path / "trap.bin", tmp_path / "sprung"
    content = {"weight": torch.ones(2), "trap": Trap(sprung)}
    if plain_pickle:
        path.write_bytes(pickle.dumps({"trap": Trap(sprung)}, protocol=2))
    else:
        torch.save(content, path)
    assert "contains Python objects, which could run code when loaded" in error_of(path)
    assert not sprung.exists()


def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ViT.pt"
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    assert "TorchScript" in error_of(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "contains a list, expected a mapping"),
        ({"epoch": 3, "optimizer": {}}, "2 entries (epoch, optimizer) should be tensors (epoch is a int)"),
        ({"state_dict": [1]}, "state_dict is a list"),
        ({}, "contains no tensors"),
    ],
)
def test_other_contents_are_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.bin")
    assert message in error_of(tmp_path / "a.bin")


def test_float32_copies_share_no_memory_and_keep_integers() -> None:
    source = {**STATE, "count": torch.tensor(3)}
    copies = to_float32(source)
    assert [copies[key].dtype for key in source] == [torch.float32, torch.float32, torch.int64]
    copies["layer.weight"].zero_()
    assert source["layer.weight"].any()


CLIP = ["clip.visual.proj", "clip.logit_scale"]
SEQUENTIAL = [*CLIP, "frame_position_embeddings.weight", "transformerClip.resblocks.0.ln_1.weight"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["clip.vision_model.post_layernorm.bias", "pool_frames.layer_norm1.bias"], "an X-Pool"),
        ([*CLIP, "pool_frames.layer_norm1.bias"], "an X-Pool"),
        (
            [*SEQUENTIAL, "clip.visual.transformer.resblocks.10.attn.net.in_proj_bias", "visual_token_selector.x"],
            "with",
        ),
        ([*SEQUENTIAL, "visual_token_selector.score_predictor.in_conv.0.bias"], "TeachCLIP layout, without"),
        ([*SEQUENTIAL, "global_mat_weight"], "an X-CLIP"),
        ([*SEQUENTIAL, "weight_center", "trans_layernorm.bias"], "a CLIP2Video"),
        ([*SEQUENTIAL, "frameLinear.weight", "frameLinear2.bias"], "a TeachCLIP student"),
        ([*CLIP, "cross.pooler.dense.bias", "similarity_dense.weight"], "CLIP4Clip tightTransf"),
        ([*CLIP, "frame_position_embeddings.weight", "lstm_visual.bias_ih_l0"], "CLIP4Clip seqLSTM"),
        (SEQUENTIAL, "CLIP4Clip seqTransf checkpoint"),
        (CLIP, "CLIP4Clip meanP"),
        (["visual.proj", "logit_scale"], "an OpenAI CLIP"),
        (["vision_model.post_layernorm.bias", "logit_scale"], "a transformers CLIP"),
        (["clip.vision_model.post_layernorm.bias", "aggregation.score.bias"], "a teachclip student"),
        (["conv1.weight", "fc.bias"], "an unknown checkpoint with 2 entries (conv1.weight, fc.bias)"),
    ],
)
def test_a_checkpoint_is_described_by_the_names_that_only_it_has(keys: list[str], words: str) -> None:
    assert words in describe_checkpoint(dict.fromkeys(keys))


def test_a_check_names_a_few_of_all_differences() -> None:
    expected = {f"w{number}": torch.ones(2) for number in range(9)}
    given = {"w0": torch.ones(3), "extra": torch.ones(1), **{f"w{number}": torch.ones(2) for number in range(5, 9)}}
    with pytest.raises(CheckpointError) as error:
        check_state(given, expected, source="best.bin")
    assert str(error.value) == (
        "best.bin: 4 entries (w1, w2, w3, ...) missing; 1 entry (extra) unexpected; "
        "1 entry (w0) of another shape (w0: (3,), expected (2,))"
    )
    check_state(expected, expected, source="best.bin")


def test_large_numbers_are_finite_even_if_their_sum_is_not() -> None:
    check_finite({"large": torch.full((4,), 6e4, dtype=torch.float16), "count": torch.ones(2).long()}, source="file")
    with pytest.raises(CheckpointError, match="file: 2 of 3 numbers of w are NaN or infinite"):
        check_finite({"w": torch.tensor([1.0, torch.inf, -torch.inf])}, source="file")
