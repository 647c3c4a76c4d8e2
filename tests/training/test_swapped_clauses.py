"""Captions with their clauses swapped as negatives of their own videos."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import CAPTIONS, VIDEOS, TinyPixels, tiny_batches, tiny_student
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from teachclip.data.clauses import swapped
from teachclip.training.chunked_step import chunked_backward
from teachclip.training.task import FAR, DistillationTask, DistillationTerms, pairs_loss


def test_own_connectives_replace_the_usual_ones() -> None:
    assert swapped("a cat sleeps und danach a dog barks", [" und danach "]) == "a dog barks und danach a cat sleeps"
    assert swapped("a cat sleeps, then a dog barks", [" und danach "]) is None


@pytest.mark.parametrize("connectives", [[" then ", ", then "], [", then ", " then "], [" then "]])
def test_neither_the_order_of_connectives_nor_a_short_one_makes_wrong_english(connectives: list[str]) -> None:
    assert swapped("a man runs, then he jumps", connectives) == "he jumps, then a man runs"
    assert swapped("a man runs and then he jumps", connectives) == "he jumps and then a man runs"
    assert swapped("A man runs, but then he jumps.", connectives) == "He jumps, but then a man runs."
    assert swapped("a man runs then he jumps", connectives) == "he jumps then a man runs"
    assert swapped("a man runs, then he jumps and then he rests", connectives) is None
    assert swapped("and then he jumps", connectives) is None


def test_without_connectives_nothing_is_swapped() -> None:
    assert swapped("a man runs, then he jumps", []) is None


def test_a_swapped_caption_is_a_negative_of_its_own_video_alone() -> None:
    logits, other = torch.randn(4, 4, dtype=torch.float32), torch.randn(4, 4)
    same = torch.eye(4, dtype=torch.bool)
    other[2] = FAR  # the third caption has no clauses
    texts = cross_entropy(logits, torch.arange(4))
    rows = [torch.cat([logits[:, video], other[video : video + 1, video]]) for video in range(4)]
    rows[2] = logits[:, 2]
    videos = torch.stack([cross_entropy(row[None], torch.tensor([number])) for number, row in enumerate(rows)]).mean()
    assert_close(pairs_loss(logits, same, swapped=other), (texts + videos) / 2)
    none = torch.full((4, 4), FAR)
    assert_close(pairs_loss(logits, same, swapped=none), pairs_loss(logits, same))


def test_places_that_are_no_pair_have_no_swapped_caption_either() -> None:
    logits, other, same = torch.randn(3, 3), torch.randn(3, 3), torch.eye(3, dtype=torch.bool)
    is_pair = torch.tensor([True, False, True])
    some = [0, 2]
    expected = pairs_loss(logits[some][:, some], same[some][:, some], swapped=other[some][:, some])
    assert_close(pairs_loss(logits, same, is_pair, swapped=other), expected)


class Swapped:
    """Other token ids for every caption; every third one has no clauses to swap."""

    def __init__(self) -> None:
        self.ids = TinyPixels.make().ids.flip(0).contiguous()
        self.is_swapped = torch.arange(VIDEOS * CAPTIONS) % 3 > 0

    def texts(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        ids = self.ids[rows]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "is_swapped": self.is_swapped[rows]}

    def videos(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {}


def batch() -> dict[str, torch.Tensor]:
    batches = tiny_batches(stored=False)
    batches.extras["swapped."] = Swapped()  # type: ignore[assignment]
    return batches[0]


def gradients(task: DistillationTask) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def test_they_add_to_the_contrastive_term_and_every_gradient_is_finite() -> None:
    task, given = DistillationTask(tiny_student(), DistillationTerms()).train(), batch()
    plain = {name: tensor for name, tensor in given.items() if not name.startswith("swapped.")}
    losses = task(given)
    assert losses["contrastive"].item() > task(plain)["contrastive"].item()
    losses["loss"].backward()
    assert all(gradient.isfinite().all() for gradient in gradients(task).values())
    given["swapped.is_swapped"][:] = False
    assert_close(task(given)["contrastive"], task(plain)["contrastive"])


@pytest.mark.parametrize("size", [3, 8])
def test_chunks_give_the_same_gradients(size: int) -> None:
    task, given = DistillationTask(tiny_student(), DistillationTerms()).train(), batch()
    loss = task(given)["loss"]
    loss.backward()
    whole = gradients(task)
    task.zero_grad()
    context = {"autocast": lambda: torch.autocast("cpu", enabled=False), "backward": lambda loss: loss.backward()}
    assert_close(chunked_backward(task, given, size, **context)["loss"], loss.detach())
    assert_close(gradients(task), whole, rtol=1e-4, atol=1e-6)
