"""The numbers of a diagnosis against closed forms: ranks, agreement, weights, fitted vectors, parts of the gap."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from teachclip.diagnosis import features as diagnosis_features
from teachclip.diagnosis.agreement import top_overlap, weight_overlap, worst_captions
from teachclip.diagnosis.alternatives import (
    can_cross_fit,
    caption_folds,
    closest_frame_scores,
    conditioned_scores,
    fit_vectors,
    relevance_weights,
    scores_by_fold,
)
from teachclip.diagnosis.features import Features, FrameTeacher, pair_relevance, pool
from teachclip.diagnosis.ladder import (
    RECALLS,
    Step,
    best_step,
    closest_selected,
    conditioned_steps,
    control_step,
    fitted_steps,
    gap_of,
    measure,
    measure_ladder,
    parts_of_gap,
    temperature_scaled,
)
from teachclip.diagnosis.report import verdicts
from teachclip.evaluation.agreement import average_ranks, mean_spearman, spearman

VIDEOS, FRAMES, DIM = 6, 4, 16


class CosineTeacher:
    """Gives softmax(10 cos) of frames as relevance, and records the numbers of pairs of its calls."""

    def __init__(self):
        self.sizes = []

    def frame_relevance(self, texts, videos):
        self.sizes.append(len(texts["embeds"]))
        return (10 * torch.einsum("pd,pfd->pf", texts["embeds"], videos["frames"])).softmax(dim=-1)


def made_up(captions_per_video=3, *, encoder=True, seed=0):
    """Return features whose captions each describe one frame of their video, and a teacher for them."""
    generator = torch.Generator().manual_seed(seed)
    frames = normalize(torch.randn(VIDEOS, FRAMES, DIM, generator=generator), dim=-1)
    owners = torch.arange(VIDEOS).repeat_interleave(captions_per_video)
    noise = 0.1 * torch.randn(len(owners), DIM, generator=generator)
    texts = normalize(frames[owners, 1] + noise, dim=-1)
    weights = torch.full((VIDEOS, FRAMES), 1 / FRAMES)
    features = Features(
        texts,
        frames,
        frames if encoder else None,
        torch.ones_like(weights).bool(),
        weights,
        pool(frames, weights),
        20.0,
        owners,
    )
    teacher, tokens = CosineTeacher(), ({"embeds": texts}, {"frames": frames})
    own = pair_relevance(teacher, *tokens, np.arange(len(owners)), owners.numpy(), temperature=1.0)
    return features, FrameTeacher(teacher, *tokens, 1.0, own)


def recalls(*values):
    return dict(zip(RECALLS, values, strict=True))


# agreement


def test_equal_values_share_the_mean_of_their_ranks():
    assert average_ranks(np.array([10, 20, 20, 5])).tolist() == [2, 3.5, 3.5, 1]
    assert average_ranks(np.array([7.0, 7, 7])).tolist() == [2, 2, 2]
    assert average_ranks(np.array([0.3, -1, 2])).tolist() == [2, 1, 3]


def test_rank_correlation_has_its_closed_forms():
    left, right = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 50])
    squares = 4 * 1
    assert spearman(left, right) == pytest.approx(1 - 6 * squares / (5 * 24))
    assert spearman(left, np.exp(left)) == pytest.approx(1)
    assert spearman(left, -left) == pytest.approx(-1)
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman(left, np.ones(5)))


def test_captions_without_a_ranking_do_not_count_in_the_mean():
    left = torch.tensor([[1.0, 2, 3], [3, 2, 1], [1, 1, 1]])
    assert mean_spearman(left, torch.tensor([[1.0, 2, 3]] * 3)) == pytest.approx(0)
    assert mean_spearman(torch.ones(2, 3), left[:2]) is None


def test_overlaps_of_top_videos_and_of_weights():
    left, right = torch.tensor([[4.0, 3, 2, 1], [4, 3, 2, 1]]), torch.tensor([[4.0, 3, 2, 1], [4, 1, 2, 3]])
    assert top_overlap(left, right, top=2) == pytest.approx((1 + 0.5) / 2)
    assert top_overlap(left, right) == 1  # of four videos all are among the first ten
    weights = torch.tensor([[0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    assert weight_overlap(weights, weights) == pytest.approx(1)
    assert weight_overlap(weights, torch.tensor([[0, 0, 1.0], [0.5, 0.5, 0]])) == pytest.approx((0 + 0.5) / 2)


def test_the_worst_captions_come_first_once_per_video_and_only_where_the_student_is_behind():
    student, teacher = np.array([9, 30, 5, 1, 7, 2]), np.array([1, 2, 5, 4, 1, 1])
    owners = np.array([0, 0, 1, 1, 2, 3])
    assert worst_captions(student, teacher, owners, 9).tolist() == [1, 4, 5]
    assert worst_captions(student, teacher, owners, 1).tolist() == [1]
    assert worst_captions(teacher, teacher, owners, 9).tolist() == []


# weights and vectors


def test_captions_go_to_folds_in_turn_and_captions_of_one_video_are_counted():
    assert caption_folds(torch.tensor([0, 0, 0, 1, 2, 2]), 2).tolist() == [0, 1, 0, 0, 0, 1]
    assert can_cross_fit(torch.tensor([0, 0, 1, 2])) and not can_cross_fit(torch.tensor([0, 0, 1, 2, 3]))


def test_cross_fitting_scores_every_caption_once_with_what_it_did_not_make():
    features, _ = made_up(captions_per_video=7)
    seen = torch.zeros(len(features.texts), dtype=torch.int64)

    def score(keep, rows):
        assert not (keep & rows).any() and (keep | rows).all()
        seen[rows] += 1
        return features.texts[rows] @ features.vectors.T

    assert torch.equal(scores_by_fold(features, score, cross_fitted=True), features.texts @ features.vectors.T)
    assert (seen == 1).all()
    scores_by_fold(features, lambda keep, rows: (keep & rows).float()[:, None], cross_fitted=False)


def test_relevance_weights_are_means_over_kept_captions_and_the_students_weights_without_any():
    features, _ = made_up(captions_per_video=2)
    own = normalize(torch.rand(VIDEOS, FRAMES), p=1, dim=-1)
    mask = torch.ones(VIDEOS, FRAMES).bool()
    mask[1, 3] = False
    features = replace(features, weights=own, mask=mask)
    relevance = torch.zeros(2 * VIDEOS, FRAMES)
    relevance[0], relevance[1] = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0.5, 0.5, 0])
    relevance[2] = torch.tensor([0.25, 0.25, 0, 0.5])
    keep = torch.zeros(2 * VIDEOS, dtype=torch.bool)
    keep[:3] = True
    found = relevance_weights(relevance, features, keep)
    assert torch.allclose(found[0], torch.tensor([0.5, 0.25, 0.25, 0]))
    assert torch.allclose(found[1], torch.tensor([0.5, 0.5, 0, 0]))  # nothing on the padded frame
    assert torch.equal(found[2:], own[2:])


def test_fitted_vectors_recover_known_vectors():
    generator = torch.Generator().manual_seed(0)
    known = normalize(torch.randn(12, DIM, generator=generator), dim=-1)
    owners = torch.arange(12).repeat(20)
    texts = normalize(known[owners] + 0.05 * torch.randn(240, DIM, generator=generator), dim=-1)
    start = normalize(torch.randn(12, DIM, generator=generator), dim=-1)
    found = fit_vectors(start, texts, owners, scale=5.0, batch=100)
    assert torch.allclose(found.norm(dim=-1), torch.ones(12), atol=1e-5)
    assert (start * known).sum(-1).mean() < 0.3 < 0.85 < (found * known).sum(-1).min()
    assert measure(known @ found.T, np.arange(12))["recall_at_1"] == 100
    assert torch.equal(fit_vectors(start, texts[:0], owners[:0], scale=5.0), start)


def test_fitting_is_the_same_every_time_and_leaves_torchs_generator_alone():
    features, _ = made_up()
    state = torch.get_rng_state()
    found = [
        fit_vectors(features.vectors, features.texts, features.caption_videos, scale=20.0, steps=5) for _ in range(2)
    ]
    assert torch.equal(*found) and torch.equal(state, torch.get_rng_state())


def test_scores_of_many_vectors_agree_with_pooling_each_pair():
    features, _ = made_up()
    mask = features.mask.clone()
    mask[2, 1] = False
    relevance = torch.rand(len(features.texts), VIDEOS, FRAMES)
    found = conditioned_scores(
        features.texts, features.frames, features.frames @ features.frames.transpose(1, 2), relevance
    )
    closest = closest_frame_scores(features.texts, features.frames, mask, block=4)
    for text, row in zip(features.texts, range(len(relevance)), strict=True):
        pooled = pool(features.frames, relevance[row])
        torch.testing.assert_close(found[row], pooled @ text, atol=1e-5, rtol=0)
        for video in range(VIDEOS):
            torch.testing.assert_close(closest[row, video], (features.frames[video][mask[video]] @ text).max())


def test_pair_relevance_is_computed_in_blocks_that_fit(monkeypatch):
    features, teacher = made_up()
    rows, columns = np.arange(18), features.caption_videos.numpy()
    monkeypatch.setattr(diagnosis_features, "PAIR_ELEMENTS", 5 * (DIM + FRAMES * DIM))
    model = CosineTeacher()
    found = pair_relevance(model, teacher.texts, teacher.videos, rows, columns, temperature=1.0)
    assert model.sizes == [5, 5, 5, 3]
    torch.testing.assert_close(found, teacher.relevance)
    sharper = pair_relevance(model, teacher.texts, teacher.videos, rows, columns, temperature=0.5)
    torch.testing.assert_close(sharper, teacher.relevance**2 / (teacher.relevance**2).sum(-1, keepdim=True))


# the ladder


def test_parts_add_up_to_the_gap_and_may_be_negative():
    ladder = [
        Step("a", "a", "", recalls(20, 30, 40)),
        Step("b", "b", "", recalls(35.5, 30, 41), "first"),
        Step("c", "c", "", recalls(30, 20, 40), "second"),
    ]
    parts = parts_of_gap(ladder)
    assert [(part["step"], part["label"], part["recall_at_1"]) for part in parts] == [
        ("b", "first", 15.5),
        ("c", "second", -5.5),
    ]
    for name in RECALLS:
        assert sum(part[name] for part in parts) == pytest.approx(gap_of(ladder)[name])
    assert best_step(ladder).name == "b"


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("frames", [True, False], ids=["with_frames", "without_frames"])
def test_every_ladder_goes_from_student_to_teacher_and_adds_up(captions, frames):
    features, teacher = made_up(captions)
    student = measure(features.texts @ features.vectors.T, features.caption_videos.numpy())
    ladder, comparisons = measure_ladder(features, teacher if frames else None, student, recalls(99, 100, 100))
    names = [step.name for step in ladder]
    middle = ["frame_selection", "encoder_frames"] * frames + ["one_vector"]
    assert names == ["student", *(middle if captions > 1 else ["text_conditioned"] * 2 * frames), "teacher"]
    assert all(step.part for step in ladder[1:]) and all(step.description for step in [*ladder, *comparisons])
    parts = parts_of_gap(ladder)
    for name in RECALLS:
        assert sum(part[name] for part in parts) == pytest.approx(gap_of(ladder)[name])
        assert gap_of(ladder)[name] == recalls(99, 100, 100)[name] - student[name]
    assert ("frame_selection" in {step.name for step in comparisons}) == frames


def test_a_teacher_that_knows_the_right_frame_explains_a_gap_of_frame_selection():
    features, teacher = made_up(seed=3)
    wrong = torch.zeros(VIDEOS, FRAMES)
    wrong[:, 0] = 1
    features = replace(features, weights=wrong, vectors=pool(features.frames, wrong), encoder_frames=None)
    student = measure(features.texts @ features.vectors.T, features.caption_videos.numpy())
    ladder = measure_ladder(features, teacher, student, recalls(100, 100, 100)).steps
    parts = {part["label"]: part["recall_at_1"] for part in parts_of_gap(ladder)}
    assert parts == {
        "frame selection": 100 - student["recall_at_1"],
        "a better vector": 0,
        "beyond one vector": 0,
    }
    assert student["recall_at_1"] < 50


def test_the_best_vector_is_never_worse_than_the_steps_before_it():
    features, teacher = made_up()
    perfect = recalls(100, 100, 100)
    ladder = measure_ladder(features, teacher, perfect, perfect).steps
    assert ladder[-2].name == "one_vector" and ladder[-2].metrics == perfect
    assert "It was: student." in ladder[-2].description


def test_vectors_are_measured_on_captions_that_they_were_not_fitted_to():
    features, _ = made_up(2, seed=1)
    generator = torch.Generator().manual_seed(5)
    features = replace(features, texts=normalize(torch.randn(features.texts.shape, generator=generator), dim=-1))
    (held_out,) = fitted_steps(features, cross_fitted=True, factors=[1.0])
    (in_sample,) = fitted_steps(features, cross_fitted=False, factors=[1.0])
    assert in_sample.metrics["recall_at_1"] > 90 and held_out.metrics["recall_at_1"] < 50  # nothing to learn


def test_what_captions_alone_explain_is_no_gain_of_a_better_vector():
    """Sister captions are alike here and videos say nothing: vectors fitted without any video find as much."""
    features, _ = made_up(seed=2, encoder=False)
    frames = normalize(torch.randn(features.frames.shape, generator=torch.Generator().manual_seed(9)), dim=-1)
    features = replace(features, frames=frames, vectors=pool(frames, features.weights))
    student = measure(features.texts @ features.vectors.T, features.caption_videos.numpy())
    control = control_step(features)
    assert student["recall_at_1"] < 50 < control.metrics["recall_at_1"]
    found, comparisons = measure_ladder(features, None, student, recalls(100, 100, 100))
    parts = {part["label"]: part["recall_at_1"] for part in parts_of_gap(found)}
    assert parts == {"a better vector": 0, "beyond one vector": 100 - student["recall_at_1"]}
    assert "cannot be told" in found[1].description
    names = [step.name for step in comparisons]
    assert "control" in names and "fitted" in names
    report = {"gap": recalls(50, 0, 0), "parts": [], "comparisons": [], "ladder": [], "videos": 9, "captions": 9}
    lines = verdicts({**report, "cross_fitted": True, "better_vector_identifiable": False})
    assert any("cannot be told" in line for line in lines)


def test_a_better_vector_counts_where_captions_alone_find_less_than_the_student():
    features, _ = made_up(2, seed=1)
    generator = torch.Generator().manual_seed(5)
    texts = features.frames[features.caption_videos, torch.arange(12) % 2]  # sisters describe different frames
    weights = torch.tensor([0.5, 0.5, 0, 0]).repeat(VIDEOS, 1)
    noise = 0.02 * torch.randn(texts.shape, generator=generator)
    features = replace(
        features, texts=normalize(texts + noise, dim=-1), weights=weights, vectors=pool(features.frames, weights)
    )
    student = measure(features.texts @ features.vectors.T, features.caption_videos.numpy())
    assert control_step(features).metrics["recall_at_1"] < student["recall_at_1"]
    assert "cannot be told" not in measure_ladder(features, None, student, student).steps[1].description


def test_many_captions_are_sampled_and_the_sample_is_not_part_of_the_gap():
    features, teacher = made_up(1, encoder=False)
    (step,) = conditioned_steps(features, teacher, max_pairs=3 * VIDEOS)
    assert step.captions == 3 and "sample of 3 of the 6 captions" in step.description
    student = measure(features.texts @ features.vectors.T, features.caption_videos.numpy())
    ladder, comparisons = measure_ladder(features, teacher, student, recalls(9, 9, 9), max_pairs=3 * VIDEOS)
    assert [step.name for step in ladder] == ["student", "teacher"]
    assert "text_conditioned" in {step.name for step in comparisons}


def test_verdicts_name_a_missing_gap_and_single_captions():
    def report(gap, crossed):
        parts = [{"label": "frame selection", "recall_at_1": gap}]
        return {
            "gap": recalls(gap, 0, 0),
            "parts": parts,
            "comparisons": [],
            "ladder": [],
            "videos": 100,
            "cross_fitted": crossed,
        }

    lines = verdicts(report(12.5, True))
    assert lines[0] == "The student is 12.5 R@1 behind the teacher, which is: frame selection +12.5."
    assert "up to 5.0 points" in lines[1] and len(lines) == 2
    assert "not behind the teacher at R@1 (3.0 points ahead)" in verdicts(report(-3.0, True))[0]
    assert "'in sample': they are upper bounds" in verdicts(report(12.5, False))[-1]


def test_verdicts_compare_only_what_was_measured_on_all_captions():
    many = [("closest_frame", None, 40.0), ("text_conditioned", 30, 90.0)]
    report = {
        "gap": recalls(12, 0, 0),
        "parts": [],
        "comparisons": [
            {"name": name, "label": name, "captions": count, "recall_at_1": r} for name, count, r in many
        ],
        "ladder": [recalls(value, 0, 0) for value in (20.0, 30.0, 32.0)],
        "videos": 100,
        "captions": 300,
        "cross_fitted": True,
    }
    assert "would give 40.0 R@1 (closest_frame), +10.0 against the best single vector" in verdicts(report)[1]


def test_a_flat_relevance_is_tempered_before_it_selects_frames():
    features, teacher = made_up(seed=3)
    cosines = torch.einsum("cd,cfd->cf", features.texts, features.frames[features.caption_videos])
    flat = (0.05 * cosines).softmax(dim=-1)  # right, but nearly uniform
    assert weight_overlap(flat, features.weights[features.caption_videos]) > 0.98
    student = measure(features.texts @ features.vectors.T, features.caption_videos.numpy())
    ladder = measure_ladder(features, teacher._replace(relevance=flat), student, student).steps
    assert student["recall_at_1"] < ladder[1].metrics["recall_at_1"]
    assert "at temperature 1," not in ladder[1].description
    assert closest_selected(features, teacher.relevance).metrics["recall_at_1"] == 100


def test_weights_that_are_too_flat_gain_by_a_lower_temperature():
    features, _ = made_up(seed=4)
    weights = torch.tensor([0.2, 0.35, 0.23, 0.22]).repeat(VIDEOS, 1)
    features = replace(features, weights=weights, vectors=pool(features.frames, weights))
    student = measure(features.texts @ features.vectors.T, features.caption_videos.numpy())
    found = temperature_scaled(features)
    assert found.metrics["recall_at_1"] >= student["recall_at_1"]
    power = measure(features.texts @ pool(features.frames, weights**2).T, features.caption_videos.numpy())
    assert found.metrics["recall_at_1"] >= power["recall_at_1"]
