"""What teaches the attention of several vectors per video."""

from __future__ import annotations

import pytest
import torch
from tiny import FRAMES, tiny_batches, tiny_clip, tiny_student
from torch.testing import assert_close

from teachclip.models.student import StudentModel
from teachclip.training.task import DistillationTask, DistillationTerms, Term, taught_scores


def student(vectors: int) -> StudentModel:
    torch.manual_seed(5)
    return StudentModel.from_backbone(tiny_clip(), temporal_layers=2, frames=FRAMES, vectors=vectors)


def test_one_vector_is_the_student_as_it_was() -> None:
    for (name, one), (other, usual) in zip(
        student(1).state_dict().items(), tiny_student().state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(one, usual)


def test_the_attention_of_the_nearest_vector_is_taught_or_of_a_whole_video_the_highest() -> None:
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    videos = torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.9, 0.1], [0.2, 0.8]]])
    scores = torch.tensor([[[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]], [[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]]])
    assert torch.equal(
        taught_scores(texts, videos, scores, of_video=False), torch.stack([scores[0, 0], scores[1, 1]])
    )
    assert torch.equal(taught_scores(texts, videos, scores, of_video=True), torch.tensor([[6.0, 5.0, 4.0]] * 2))


@pytest.mark.parametrize("of_video", [False, True])
def test_all_terms_train_several_vectors(of_video: bool) -> None:
    terms = DistillationTerms(frame_text=Term(2.0, "cross_entropy", of_video=of_video))
    several = student(3)
    with torch.no_grad():  # as new ones are, they are nearly the same
        several.aggregation.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    task = DistillationTask(several, terms, stored_weights=(1.0,))
    losses = task(tiny_batches()[0])
    losses["loss"].backward()
    gradient = several.aggregation.score.weight.grad
    assert gradient is not None and (gradient.abs().sum(dim=1) > 0).all(), "each vector learns from some pair"
    optimizer = torch.optim.Adam(several.parameters(), lr=3e-4)
    for number in range(12):
        optimizer.zero_grad()
        last = task(tiny_batches()[number])["loss"]
        last.backward()
        optimizer.step()
    assert last.item() < losses["loss"].item()


def test_equal_vectors_give_what_one_gives() -> None:
    one, several = student(1), student(3)
    with torch.no_grad():
        for name, parameter in several.named_parameters():
            parameter.copy_(one.get_parameter(name).expand_as(parameter))
    batch = tiny_batches()[0]
    found = [DistillationTask(each, DistillationTerms(), stored_weights=(1.0,))(batch) for each in (one, several)]
    for name, value in found[0].items():
        assert_close(found[1][name], value, rtol=1e-5, atol=1e-5)
