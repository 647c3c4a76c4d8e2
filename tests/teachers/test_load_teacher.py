"""Loading teachers by name: what is accepted, and the one-line errors."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_clip
from torch import nn

from teachclip.errors import CheckpointError, RecipeError, TeachclipError
from teachers import load_teacher
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


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "none.pth: no such checkpoint file" in str(error_of("xpool", tmp_path / "none.pth"))


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
