"""Loading teachers by name: what is accepted, and the one-line errors."""

from __future__ import annotations

import copy
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_models import openai_clip_shapes, rule_state
from tiny_models import tiny_clip
from torch import nn

from teachclip.errors import CheckpointError, DataError, RecipeError, TeachclipError
from teachclip.models.clip import clip_from_state, clip_of_teacher
from teachers import load_teacher
from teachers.clip2video import CLIP2Video
from teachers.ts2net import TS2Net
from teachers.xclip import XCLIP
from teachers.xpool import XPool


def checkpoint() -> dict[str, torch.Tensor]:
    return XPool.from_clip(tiny_clip(heads=1)).official_state_dict()


def error_of(name: str, given: object, **options: object) -> TeachclipError:
    with pytest.raises(TeachclipError) as error:
        load_teacher(name, given, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return error.value


def test_an_unknown_teacher_is_named_with_the_nearest_name() -> None:
    error = error_of("xpol", checkpoint())
    assert isinstance(error, RecipeError)
    assert "unknown teacher 'xpol'" in str(error) and "did you mean xpool?" in str(error)


def test_an_unknown_option_is_named_with_the_known_ones() -> None:
    error = error_of("xpool", checkpoint(), mask_pading=True)
    assert isinstance(error, RecipeError)
    assert str(error) == (
        "teacher 'xpool' has no option 'mask_pading'; known: mask_padding, heads, dropout, clip_config; "
        "did you mean mask_padding?"
    )


def test_an_unknown_option_in_the_file_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": checkpoint(), "options": {"layers": 3}}, tmp_path / "x.pth")
    assert str(error_of("xpool", tmp_path / "x.pth")).startswith(f"{tmp_path}/x.pth: teacher 'xpool' has no option")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("pool_frames.linear_proj.bias"), "1 entry (pool_frames.linear_proj.bias) missing"),
        (lambda s: s.pop("clip.visual_projection.weight"), "1 entry (clip.visual_projection.weight) missing"),
        (lambda s: s.update({"extra.weight": torch.ones(2)}), "1 entry (extra.weight) unexpected"),
        (lambda s: s.update({"clip.extra": torch.ones(2)}), "1 entry (clip.extra) unexpected"),
        (
            lambda s: s.update({"pool_frames.layer_norm1.bias": torch.ones(2)}),
            "(pool_frames.layer_norm1.bias: (2,), expected (32,))",
        ),
        (
            lambda s: [s.pop(key) for key in list(s) if key.startswith("pool_frames")],
            "expected an X-Pool checkpoint, this looks like a transformers CLIP under the prefix clip.",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    state = checkpoint()
    change(state)
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    error = error_of("xpool", tmp_path / "x.pth")
    assert isinstance(error, CheckpointError)
    assert message in str(error) and str(error).startswith(f"{tmp_path}/x.pth: ")


CLIP = openai_clip_shapes(width=64, layers=2, patch=4, grid=3, text_width=64, text_layers=2, vocabulary=100)
MODELS = {"xclip": XCLIP, "ts2net": TS2Net, "xpool": XPool, "clip2video": CLIP2Video}
PROPER = {"xclip": "X-CLIP", "ts2net": "TS2-Net", "xpool": "X-Pool", "clip2video": "CLIP2Video"}


def state_of(name: str) -> dict[str, torch.Tensor]:
    sizes = {"frames": 4} if name == "clip2video" else {"frames": 4, "tokens": 8} if name == "xclip" else {}
    clip = clip_from_state(rule_state(CLIP, seed=3), source="small")
    state = MODELS[name].from_clip(clip, **sizes).official_state_dict()  # type: ignore[attr-defined]
    assert isinstance(state, dict)
    return state


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One official file of every teacher."""
    folder = tmp_path_factory.mktemp("official")
    for name in MODELS:
        torch.save(state_of(name), folder / f"{name}.bin")
    return {name: folder / f"{name}.bin" for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_every_teacher_loads_its_own_file(files: dict[str, Path], name: str) -> None:
    assert isinstance(load_teacher(name, files[name]), MODELS[name])


@pytest.mark.parametrize("wanted", MODELS)
@pytest.mark.parametrize("given", MODELS)
def test_another_teachers_file_is_called_by_its_name(files: dict[str, Path], wanted: str, given: str) -> None:
    if wanted == given:
        return
    error = error_of(wanted, files[given])
    assert str(error).startswith(f"{files[given]}: expected a")
    assert f"{PROPER[wanted]} checkpoint, this looks like a" in str(error)
    assert PROPER[given] in str(error).split("looks like")[1]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _pickle(path: Path) -> None:
    torch.save({"state_dict": Path("/")}, path)


def _whole_model(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no such checkpoint file"),
        (_folder, "is a folder, expected a checkpoint file"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (_truncate, "is truncated or not a checkpoint"),
        (lambda path: path.write_text("<html>not found</html>"), "is truncated or not a checkpoint"),
        (_pickle, "contains Python objects"),
        (_whole_model, "contains Python objects"),
        (lambda path: torch.save([torch.ones(2)], path), "contains a list, expected a mapping"),
        (lambda path: torch.save({}, path), "contains no tensors"),
        (lambda path: torch.save({"epoch": 3}, path), "1 entry (epoch) should be tensors (epoch is a int)"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
        (lambda path: torch.save({"fc.weight": torch.ones(2, 2)}, path), "this looks like an unknown checkpoint"),
    ],
)
def test_a_damaged_or_foreign_file_gets_one_line(
    files: dict[str, Path], tmp_path: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "given.bin"
    path.write_bytes(files[name].read_bytes())
    damage(path)
    error = error_of(name, path)
    assert isinstance(error, CheckpointError)
    assert str(error).startswith(f"{path}: ") and message in str(error)


@pytest.mark.parametrize("wanted", MODELS)
@pytest.mark.parametrize("given", ["xpool", "clip2video", "ts2net"])
def test_our_own_file_of_another_teacher_is_called_by_its_name(wanted: str, given: str) -> None:
    options = {"selection": "hard"} if given == "ts2net" else {}
    content = load_teacher(given, state_of(given), **options).checkpoint()  # type: ignore[attr-defined]
    assert content["options"]
    if wanted == given:
        assert isinstance(load_teacher(wanted, content), MODELS[wanted])
    else:
        error = error_of(wanted, content)
        assert isinstance(error, CheckpointError) and PROPER[given] in str(error).split("looks like")[1]


@pytest.mark.parametrize("name", MODELS)
def test_names_that_data_parallel_has_prefixed_are_read(name: str) -> None:
    state = state_of(name)
    teacher = load_teacher(name, {f"module.{key}": tensor for key, tensor in state.items()})
    again = teacher.official_state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("name", MODELS)
def test_weights_that_are_no_finite_numbers_are_named(name: str) -> None:
    state = state_of(name)
    key = "clip.text_projection" if "clip.text_projection" in state else "clip.text_projection.weight"
    broken = {**state, key: state[key].clone()}
    broken[key][0, 0] = torch.nan
    assert f"1 of 4096 numbers of {key} are NaN or infinite" in str(error_of(name, broken))
    whole = {**state, key: state[key].long()}
    assert f"of another type ({key}: torch.int64" in str(error_of(name, whole))
    without = {name: tensor for name, tensor in state.items() if not name.startswith("clip.")}
    assert "contains no CLIP: no name starts with clip." in str(error_of(name, without))


class Unsound(torch.nn.Linear):
    """A teacher of somebody's own whose folder holds weights that are no numbers."""

    score = encode_texts = encode_videos = None

    @classmethod
    def from_source(cls, checkpoint: str) -> torch.nn.Module:
        teacher = cls(2, 3)
        teacher.weight.data[0] = torch.inf
        return teacher


def test_weights_of_a_teacher_from_a_folder_are_checked_too() -> None:
    with pytest.raises(CheckpointError, match="theirs: 2 of 6 numbers of weight are NaN or infinite"):
        load_teacher(f"{__name__}:Unsound", "theirs")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("xclip", {"mask_padding": "false"}),
        ("xclip", {"temporal_heads": "1"}),
        ("xclip", {"temporal_heads": 0}),
        ("ts2net", {"token_shift": "yes"}),
        ("xpool", {"heads": "2"}),
        ("xpool", {"clip_config": "x"}),
        ("clip2video", {"center_weight": True}),
        ("clip2video", {"center_weight": None}),
        ("clip2video", {"temporal_heads": -1}),
    ],
)
def test_an_option_of_another_type_or_range_is_named(name: str, options: dict[str, object]) -> None:
    error = error_of(name, state_of(name), **options)
    assert next(iter(options)).removeprefix("temporal_") in str(error)


@pytest.mark.parametrize("name", MODELS)
def test_inputs_of_no_items_or_of_other_numbers_are_refused(name: str) -> None:
    teacher = load_teacher(name, state_of(name))
    pixels = torch.zeros(2, 4, 3, 12, 12)
    texts = teacher.encode_texts(torch.tensor([[1, 99]]), torch.ones(1, 2, dtype=torch.int64))
    videos = teacher.encode_videos(pixels, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(DataError, match="got 1 texts and 2 videos"):
        teacher.frame_relevance(texts, videos)
    with pytest.raises(DataError, match=r"frame_mask has shape \(1, 4\)"):
        teacher.encode_videos(pixels, torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(DataError, match="at least one video"):
        teacher.encode_videos(pixels[:0], torch.ones(0, 4, dtype=torch.bool))
    with pytest.raises(DataError, match="at least one of each"):
        teacher.encode_texts(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64))


@pytest.mark.parametrize("name", MODELS)
def test_every_missing_or_misshapen_tensor_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = state_of(name)
    clip = None if name == "ts2net" else clip_of_teacher(whole, None, source="whole")

    def read_clip(state: dict[str, torch.Tensor], *arguments: object, source: str) -> nn.Module:
        if all(state.get(key) is tensor for key, tensor in whole.items() if key.startswith("clip.")):
            return copy.deepcopy(clip)  # as it is the whole one, and reading it takes most of the time
        return clip_of_teacher(state, *arguments, source=source)  # type: ignore[arg-type]

    if name != "ts2net":  # whose file is put in order before its CLIP is read
        monkeypatch.setattr(f"teachers.{name}.clip_of_teacher", read_clip)
    # All read CLIP as X-Pool does: of its blocks the others show the first, and of its tensors every second each way.
    keys = [key for key in whole if name == "xpool" or not re.search(r"^clip\..*resblocks\.[1-9]", key)]
    assert len(keys) > 60
    for number, key in enumerate(keys):
        both = name == "xpool" or not key.startswith("clip.")
        named = key.replace(".attn.net.", ".attn.")  # TS2-Net's shifted layers, which are read as any other
        if both or number % 2:
            without = {other: tensor for other, tensor in whole.items() if other != key}
            assert named in str(error_of(name, without)).replace(".attn.net.", ".attn."), key
        if both or not number % 2:
            other = error_of(name, {**whole, key: torch.ones(3, 1, 7)})
            assert named in str(other).replace(".attn.net.", ".attn."), key
    assert "no.such" in str(error_of(name, {**whole, "no.such": torch.ones(2)}))


def test_heads_that_do_not_divide_the_width_are_named() -> None:
    assert "3 heads do not divide the width 32" in str(error_of("xpool", checkpoint(), heads=3))


def test_a_teacher_of_another_module_is_found_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((2,), scale, dtype=torch.float16))

        @classmethod
        def from_state_dict(cls, state: dict[str, torch.Tensor], *, source: str, scale: float = 1.0) -> Other:
            return cls(scale)

    module = types.ModuleType("other_teachers")
    module.Other, module.nothing = Other, 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "other_teachers", module)
    teacher = load_teacher("other_teachers:Other", {"w": torch.ones(1)}, scale=2.0)
    assert teacher.weight.tolist() == [2.0, 2.0] and teacher.weight.dtype == torch.float32  # type: ignore[attr-defined]
    assert not teacher.weight.requires_grad  # type: ignore[attr-defined]
    assert "has neither from_state_dict" in str(error_of("other_teachers:nothing", {"w": torch.ones(1)}))
