"""How far CLIP moves in a published run with float16 and with float32 weights, measured as on the official code.

The student and the batches of the recorded trajectories, taught by X-CLIP at the published rates for 12 steps. Print
the measurement with `python -m pytest -s tests/training/test_float16_study.py`.
"""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from golden import load_golden
from golden_models import rule_state
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from trajectory import batch_arrays, norms, train

from teachclip.models.half_clip import use_float16_weights
from teachers import load_teacher

aten = torch.ops.aten
INFO, _ = load_golden("06_trajectory")
STUDY, _ = load_golden("13_fp16_study")
KEYS = load_golden("12_fp16_info")[0]["student_fp16_keys"]
SEEDS = (61, 62, 64)
RUN = {"lr": 1e-4, "coef_lr": 1e-3, "steps": 12}


class _Float32Products(TorchDispatchMode):
    """Multiplies float16 matrices in float32 and rounds the result, as GPUs do.

    Processors without float16 arithmetic take ten times as long for their own way to the same numbers.
    """

    products = (aten.mm.default, aten.addmm.default, aten.bmm.default)
    attention = (
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_half = any(isinstance(value, Tensor) and value.dtype == torch.float16 for value in args)
        if not is_half or func not in self.products + self.attention:
            return func(*args, **(kwargs or {}))
        result = func(*[value.float() if isinstance(value, Tensor) else value for value in args], **(kwargs or {}))
        if func is self.attention[0]:
            return result[0].half(), result[1]  # the second is the logarithm of a sum, float32 in any case
        return tree_map_only(Tensor, Tensor.half, result)


def xclip_relevance() -> list[tuple[Tensor, Tensor]]:
    """What X-CLIP says of each batch."""
    shapes = load_golden("02_xclip")[0]["manifest"]
    teacher = load_teacher("xclip", rule_state(shapes, INFO["weight_seeds"]["xclip"]), mask_padding=False)
    found = []
    for number in range(len(SEEDS)):
        batch = batch_arrays(INFO, number, SEEDS)
        with torch.no_grad():
            texts = teacher.encode_texts(batch["input_ids"], batch["attention_mask"])
            videos = teacher.encode_videos(batch["pixel_values"], batch["frame_mask"])
            found.append((teacher.score(texts, videos), teacher.frame_relevance(texts, videos)))
    return found


@pytest.fixture(scope="module")
def relative_ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Relative way |end - start| / |start| of the tensors that are float16 in the official runs, by type here."""
    teach = cache(xclip_relevance)
    prepare = {"float16": lambda student: use_float16_weights(student.backbone), "float32": lambda student: None}
    found = {}
    for kind, change in prepare.items():
        relevance = [lambda number: teach()[number]]
        with _Float32Products() if kind == "float16" else contextlib.nullcontext():
            made = train(INFO, RUN, tmp_path_factory.mktemp(kind), relevance, prepare=change, seeds=SEEDS)
        final = made.final()
        start = {key: made.initial[key].half() if kind == "float16" else made.initial[key] for key in KEYS}
        moved = norms({key: final[key].double() - start[key].double() for key in KEYS}, KEYS)
        found[kind] = moved / norms(made.initial, KEYS)
    return found


@pytest.mark.parametrize(("kind", "short"), [("float16", "fp16"), ("float32", "fp32")])
def test_clip_moves_as_far_as_on_the_official_code(
    relative_ways: dict[str, np.ndarray], kind: str, short: str
) -> None:
    ways = relative_ways[kind]
    recorded = {name: STUDY[f"rel_move_{short}_{name}"] for name in ("median", "max")}
    print(f"\n{kind}: median {np.median(ways):.2e}, max {ways.max():.2e}; official {recorded}")
    assert len(ways) == STUDY["n_fp16_keys"]
    assert np.median(ways) == pytest.approx(recorded["median"], rel=0.1)
    assert ways.max() == pytest.approx(recorded["max"], rel=0.2)
