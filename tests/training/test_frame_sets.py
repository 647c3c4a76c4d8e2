"""Frame-set distillation: which frames a step takes, how they are read, and what they teach."""

import numpy as np
import pytest
import torch
from tiny import FRAMES, TinyPixels, tiny_batches, tiny_clip, tiny_student
from torch.testing import assert_close

from teachclip.errors import LaunchError
from teachclip.processes import Processes
from teachclip.scoring.inputs import model_inputs
from teachclip.training.frame_sets import (
    SCORER,
    STUDENT,
    Draw,
    FrameSetSampler,
    FrameSetScorer,
    late_interaction,
    read_sets,
)
from teachclip.training.task import DistillationTask, DistillationTerms, Term
from teachers.xpool import XPool

INPUTS = TinyPixels.make()


def plan(**changes):
    return FrameSetSampler(
        **{"inputs": INPUTS, "count": 12, "texts": 6, "fewest": 1, "most": 2, "seed": 5, **changes}
    )


def test_a_step_draws_the_same_sets_every_time_and_another_step_others():
    one, again, other = plan().draw(3), plan().draw(3), plan().draw(4)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one.videos, other.videos)
    assert not np.array_equal(one.videos, plan(seed=6).draw(3).videos)


def test_several_processes_share_out_the_sets_of_one():
    whole, halves = plan().draw(3), [plan().draw(3, index, 2) for index in range(2)]
    for k, part in enumerate(whole):
        assert np.array_equal(np.concatenate([half[k] for half in halves]), part)


@pytest.mark.parametrize("changes", [{"count": 9}, {"texts": 5}])
def test_sets_that_cannot_be_shared_out_evenly_are_refused(changes):
    with pytest.raises(
        LaunchError, match=f"losses.frame_sets.{next(iter(changes))} is .* not a multiple of 2 processes"
    ):
        plan(**changes).draw(0, 0, 2)


def test_all_numbers_of_frames_all_videos_and_all_places_are_drawn():
    draw = plan(count=4000, texts=4000, fewest=1, most=3, repeats=3).draw(0)
    assert np.bincount(draw.sizes).tolist()[1:] == pytest.approx([4000 / 3] * 3, rel=0.1)
    assert set(draw.counts.ravel()) == {1, 2, 3}
    assert set(draw.videos.ravel()) == set(range(INPUTS.video_count))
    assert set(draw.texts) == set(range(INPUTS.text_count))
    assert 0 <= draw.places.min() < 0.01 and 0.99 < draw.places.max() < 1


def test_a_set_holds_the_frames_that_were_drawn_and_never_a_padded_one():
    videos = np.array([[0, 1], [1, 2], [1, 1]])
    places = np.array([[0.99, 0.99], [0.0, 0.5], [0.6, 0.4]])  # video 1 has two real frames, the others three
    sizes, counts = np.array([2, 2, 1]), np.array([[1, 3], [1, 1], [2, 5]])
    found = read_sets(INPUTS, Draw(videos, places, sizes, counts, np.array([4, 0])))
    expected = [[(0, 2), (1, 1)], [(1, 0), (2, 1)], [(1, 1)]]
    for i, row in enumerate(expected):
        for j, (video, frame) in enumerate(row):
            assert torch.equal(found["frames"][i, j], INPUTS.frames[video, frame])
    assert not found["frames"][2, 1].any(), "a frame behind the set's size is zero, whatever was drawn there"
    assert found["frame_mask"].tolist() == [[True, True], [True, True], [True, False]]
    assert found["frame_weights"].tolist() == [[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]]
    assert torch.equal(found["input_ids"], INPUTS.ids[[4, 0]])


def test_real_frames_that_do_not_come_first_are_found():
    class Late(TinyPixels):
        pass

    late = Late(INPUTS.frames, INPUTS.mask.flip(1), INPUTS.ids)  # video 1: frames 1 and 2 are real
    draw = Draw(np.array([[1, 1]]), np.array([[0.0, 0.9]]), np.array([2]), np.ones((1, 2), int), np.array([0]))
    found = read_sets(late, draw)
    assert torch.equal(found["frames"][0], INPUTS.frames[1, 1:3])


def test_late_interaction_is_the_best_cosine_of_a_real_frame():
    texts = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    frames = torch.tensor([[[1.0, 0.0], [0.0, 5.0]], [[1.0, 1.0], [-9.0, 0.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    half = 0.5**0.5
    assert_close(late_interaction(texts, frames, mask), torch.tensor([[1.0, half], [1.0, half]]))
    assert_close(late_interaction(texts, frames, torch.tensor([[True, False]] * 2))[1], torch.tensor([0.0, half]))


def batch_with_sets(**changes):
    batches = tiny_batches(stored=False)
    batches.sets = plan(**changes)
    return {**batches[0], "progress": torch.tensor(0.0)}


def student_with_heads():
    torch.manual_seed(5)
    base = tiny_student()
    made = type(base).from_backbone(
        base.backbone, temporal_layers=2, frames=FRAMES, adapters=["frame", "pooled", "text"]
    )
    with torch.no_grad():
        for head in made.heads.values():
            head.outer.weight.normal_(std=0.1)
    return made


def test_sets_teach_heads_and_temporal_transformer_but_neither_towers_nor_gate():
    student = student_with_heads()
    terms = DistillationTerms(contrastive=Term(0.0), frame_sets=Term(1.0))
    losses = DistillationTask(student, terms, frame_set_scorer=FrameSetScorer())(batch_with_sets())
    losses["loss"].backward()
    assert losses["loss"].item() == pytest.approx(losses["frame_sets"].item())
    moved = [name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert {name.split(".")[0] for name in moved} == {"heads", "temporal", "frame_position_embeddings", "backbone"}
    assert [name for name in moved if name.startswith("backbone.")] == ["backbone.logit_scale"]


def test_the_student_of_sets_and_its_target_are_what_they_are_said_to_be():
    student, batch = student_with_heads().eval(), batch_with_sets()
    with torch.no_grad():
        (own,), target = FrameSetScorer(scale=7.0).logits(student, batch)
        part = {name.removeprefix(STUDENT): tensor for name, tensor in batch.items() if name.startswith(STUDENT)}
        out = student.backbone
        pixels = model_inputs(part)["pixel_values"]
        frames = out.get_image_features(pixels.flatten(0, 1)).pooler_output.unflatten(0, pixels.shape[:2])
        texts = out.get_text_features(part["input_ids"], part["attention_mask"]).pooler_output
        assert_close(target, 7 * late_interaction(texts, frames, part["frame_mask"]))
        sets = student.frame_sets_from_features(frames, part["frame_weights"])
        assert_close(own, student.score(student.texts_from_features(texts), sets))
    assert own.shape == target.shape == (6, 12)


def test_a_teacher_scores_the_same_sets_from_its_own_inputs():
    class Teacher:
        def encode_texts(self, input_ids, attention_mask):
            return {"sum": input_ids.sum(1).float()}

        def encode_videos(self, pixel_values, frame_mask):
            return {"sum": (pixel_values * frame_mask[..., None, None, None]).sum((1, 2, 3, 4))}

        def score(self, texts, videos):
            return texts["sum"][:, None] * videos["sum"][None, :]

    batch = batch_with_sets(scorer=INPUTS)
    assert torch.equal(batch[SCORER + "frames"], batch[STUDENT + "frames"])
    _, target = FrameSetScorer(teacher=Teacher()).logits(student_with_heads().eval(), batch)
    part = {name.removeprefix(SCORER): tensor for name, tensor in batch.items() if name.startswith(SCORER)}
    pixels = model_inputs(part)["pixel_values"]
    assert_close(target, part["input_ids"].sum(1).float()[:, None] * pixels.sum((1, 2, 3, 4))[None, :])


def test_stored_features_score_the_same_sets_whatever_the_backbone_is_now():
    student, batch = student_with_heads().eval(), batch_with_sets()
    with torch.no_grad():
        own, target = FrameSetScorer(scale=7.0).logits(student, batch)
        part = {name.removeprefix(STUDENT): tensor for name, tensor in batch.items() if name.startswith(STUDENT)}
        pixels = model_inputs(part)["pixel_values"]
        frames = student.backbone.get_image_features(pixels.flatten(0, 1)).pooler_output
        texts = student.backbone.get_text_features(part["input_ids"], part["attention_mask"]).pooler_output
        stored = {
            SCORER + "frame_features": frames.unflatten(0, pixels.shape[:2]),
            SCORER + "text_features": texts,
            SCORER + "frame_mask": part["frame_mask"],
        }
        for parameter in student.backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        moved, still = FrameSetScorer(scale=7.0).logits(student, {**batch, **stored})
        _, drifted = FrameSetScorer(scale=7.0).logits(student, batch)
    assert_close(still, target)
    assert (drifted - target).abs().max() > 0.1 and (moved[0] - own[0]).abs().max() > 0.1


def test_a_process_reads_its_own_sets_alone():
    batches = tiny_batches(Processes(1, 2), stored=False)
    batches.sets = plan()
    assert len(batches[0][STUDENT + "frames"]) == 6 and len(batches[0][STUDENT + "input_ids"]) == 3


def test_without_teachers_sets_and_contrast_are_weighed_together():
    student = student_with_heads().eval()
    terms = DistillationTerms(contrastive=Term(0.3), frame_sets=Term(2.0))
    with torch.no_grad():
        found = DistillationTask(student, terms, frame_set_scorer=FrameSetScorer())(batch_with_sets())
        plain = DistillationTask(student, terms)(batch_with_sets())
    total = 0.3 * found["contrastive"].item() + 2 * found["frame_sets"].item()
    assert found["loss"].item() == pytest.approx(total, rel=1e-6)
    assert torch.equal(plain["loss"], plain["contrastive"])  # undistilled as before: its weight has no part


def test_sets_are_padded_to_the_frames_that_a_teacher_needs():
    draw = plan(fewest=1, most=2).draw(0)
    plain, padded = read_sets(INPUTS, draw), read_sets(INPUTS, draw, width=4)
    assert padded["frames"].shape[1] == 4 and padded["frame_mask"].shape == (12, 4)
    assert torch.equal(padded["frames"][:, :2], plain["frames"])
    assert torch.equal(padded["frame_mask"][:, :2], plain["frame_mask"]) and not padded["frame_mask"][:, 2:].any()
    batch = plan(scorer=INPUTS, scorer_width=3).batch(0)
    assert batch[STUDENT + "frames"].shape[1] == 2 and batch[SCORER + "frames"].shape[1] == 3


@pytest.mark.parametrize("by_teacher", [False, True])
def test_under_autocast_to_bfloat16_sets_teach_nearly_the_same(by_teacher):
    teacher = XPool.from_clip(tiny_clip(1)).eval() if by_teacher else None
    scorer, batch = FrameSetScorer(teacher=teacher), batch_with_sets(scorer=INPUTS if by_teacher else None)
    losses, gradients, targets = [], [], []
    for half in (False, True):
        student = student_with_heads()
        task = DistillationTask(student, DistillationTerms(Term(0.0), frame_sets=Term(1.0)), frame_set_scorer=scorer)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = task(batch)["frame_sets"]
            targets.append(scorer.logits(student, batch)[1])
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in student.heads.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] != losses[0]
    assert_close(gradients[1], gradients[0], rtol=0, atol=0.05 * gradients[0].norm().item())
    assert targets[1].dtype == torch.float32 and torch.equal(*targets) == by_teacher  # teachers run in float32
