import itertools
import re

import numpy as np
import pytest
import torch
from golden import load_golden
from torch import Tensor

from teachclip.losses import (
    FRAME_TEXT_LOSSES,
    VIDEO_TEXT_LOSSES,
    contrastive_loss,
    correlation_distance,
    frame_set_loss,
    frame_text_loss,
    video_text_loss,
)
from teachclip.losses.text_text import text_text_loss

VIDEO_KINDS = ["pearson", "cross_entropy", "smooth_l1", "kl"]
FRAME_KINDS = ["cross_entropy", "binary_cross_entropy", "pearson", "smooth_l1"]
SOFTMAX_KINDS = ["cross_entropy", "pearson", "smooth_l1"]


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relevance(*shape: int, seed: int = 1) -> Tensor:
    return draw(*shape, seed=seed).softmax(-1)


def value_and_grad(loss, inputs: Tensor) -> tuple[Tensor, Tensor]:
    leaf = inputs.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


# The recorded numbers of the official code.

OFFICIAL_VIDEO = ["pearson", "cross_entropy", "smooth_l1"]
OFFICIAL_FRAME = ["cross_entropy", "pearson", "smooth_l1"]


@pytest.mark.parametrize(
    ("video", "frame", "beta", "teachers"), list(itertools.product(range(3), range(3), range(2), range(2)))
)
def test_losses_and_gradients_equal_the_official_ones(video: int, frame: int, beta: int, teachers: int) -> None:
    _, arrays = load_golden("05_losses")
    at = (video, frame, beta, teachers)
    temperature = [1.0, 2.0][beta]
    student = torch.from_numpy(arrays["student_logits"]).requires_grad_()
    scores = torch.from_numpy(arrays["frame_score"]).requires_grad_()
    logits = [torch.from_numpy(arrays["teacher_logits"][k]) for k in range(teachers + 1)]
    frames = [torch.from_numpy(arrays["teacher_relevance"][k]) for k in range(teachers + 1)]

    contrastive = contrastive_loss(student / temperature)
    kinds = OFFICIAL_VIDEO[video], OFFICIAL_FRAME[frame]
    video_text = torch.stack(
        [video_text_loss(student, target, kind=kinds[0], temperature=temperature) for target in logits]
    ).mean()
    frame_text = torch.stack([frame_text_loss(scores, target, kind=kinds[1]) for target in frames]).mean()
    weights = (1, 10, 1) if kinds[0] == "cross_entropy" else (0.2, 1, 2)
    total = weights[0] * contrastive + weights[1] * video_text + weights[2] * frame_text
    total.backward()

    assert contrastive.item() == pytest.approx(arrays["gt"][at], abs=2e-5)
    assert video_text.item() == pytest.approx(arrays["distill"][at], abs=2e-5)
    assert frame_text.item() == pytest.approx(arrays["fine"][at], abs=2e-5)
    assert total.item() == pytest.approx(arrays["loss"][at], abs=2e-5)
    np.testing.assert_allclose(student.grad, arrays["grad_logits"][at], atol=2e-6, rtol=1e-4)
    np.testing.assert_allclose(scores.grad, arrays["grad_frame_score"][at], atol=2e-6, rtol=1e-4)


# Contrastive.


def test_contrastive_loss_of_equal_logits_is_the_log_of_the_batch() -> None:
    assert contrastive_loss(torch.full((7, 7), 3.0)).item() == pytest.approx(np.log(7), abs=1e-6)


def test_contrastive_loss_with_one_positive_each_is_the_diagonal_form() -> None:
    logits = draw(6, 6, scale=5)
    labels = torch.arange(6)
    expected = (
        torch.nn.functional.cross_entropy(logits, labels) + torch.nn.functional.cross_entropy(logits.T, labels)
    ) / 2
    assert contrastive_loss(logits) == pytest.approx(expected.item(), abs=1e-6)
    assert torch.equal(contrastive_loss(logits), contrastive_loss(logits, torch.eye(6, dtype=torch.bool)))


def test_contrastive_loss_follows_a_permutation_of_its_positives() -> None:
    logits, order = draw(6, 6, scale=5), torch.tensor([3, 0, 5, 1, 2, 4])
    positives = torch.eye(6, dtype=torch.bool)[:, order]
    assert contrastive_loss(logits[:, order], positives) == pytest.approx(contrastive_loss(logits).item(), abs=1e-6)


def test_several_captions_of_a_video_share_their_target_uniformly() -> None:
    logits = draw(3, 2, scale=3)
    positives = torch.tensor([[True, False], [True, False], [False, True]])
    rows, columns = logits.log_softmax(1), logits.log_softmax(0)
    expected_rows = -(rows[0, 0] + rows[1, 0] + rows[2, 1]) / 3
    expected_columns = -((columns[0, 0] + columns[1, 0]) / 2 + columns[2, 1]) / 2
    expected = (expected_rows + expected_columns) / 2
    assert contrastive_loss(logits, positives) == pytest.approx(expected.item(), abs=1e-6)


def test_captions_of_one_video_do_not_repel_it() -> None:
    # Two pairs of the same video: with all four as positives and equal logits nothing pulls anywhere.
    positives = torch.ones(2, 2, dtype=torch.bool)
    _, grad = value_and_grad(lambda x: contrastive_loss(x, positives), torch.zeros(2, 2))
    assert grad.abs().max() < 1e-7
    _, diagonal = value_and_grad(contrastive_loss, torch.zeros(2, 2))
    assert diagonal[0, 1] > 0.2


def test_a_video_without_a_caption_is_only_a_negative() -> None:
    logits = draw(3, 4, scale=3)
    positives = torch.eye(3, 4, dtype=torch.bool)
    rows, columns = logits.log_softmax(1).diagonal(), logits[:, :3].log_softmax(0).diagonal()
    assert contrastive_loss(logits, positives) == pytest.approx(-(rows.mean() + columns.mean()).item() / 2, abs=1e-6)


# Video-text.


def test_pearson_loss_is_zero_for_affine_probabilities() -> None:
    # Mixing with the uniform distribution is affine in the probabilities, and symmetric rows make both directions so.
    shift = torch.tensor([[1.0, 4.0, 0.5], [0.5, 1.0, 4.0], [4.0, 0.5, 1.0]])  # circulant: rows and columns sum alike
    teacher = shift / shift.sum(-1, keepdim=True)
    student = 0.3 * teacher + 0.7 / 3
    assert video_text_loss(student.log(), teacher.log()).item() == pytest.approx(0, abs=1e-6)
    assert video_text_loss(student.log(), teacher.log(), kind="kl").item() > 0.05


def test_pearson_loss_of_opposite_preferences_is_four() -> None:
    logits = torch.tensor([[2.0, -2.0], [-2.0, 2.0]])
    assert video_text_loss(-logits, logits).item() == pytest.approx(4, abs=1e-6)


@pytest.mark.parametrize("kind", ["pearson", "smooth_l1", "kl"])
def test_the_same_logits_have_no_distance(kind: str) -> None:
    logits = draw(6, 6, scale=5)
    value, grad = value_and_grad(lambda x: video_text_loss(x, logits, kind=kind), logits)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert grad.abs().max() < 1e-6


def test_cross_entropy_is_the_mean_over_all_elements_of_both_directions() -> None:
    student, teacher = draw(4, 5, seed=1, scale=3), draw(4, 5, seed=2, scale=3)
    rows = torch.nn.functional.cross_entropy(student, teacher.softmax(-1))
    columns = torch.nn.functional.cross_entropy(student.T, teacher.T.softmax(-1))
    expected = rows / 5 + columns / 4
    assert video_text_loss(student, teacher, kind="cross_entropy") == pytest.approx(expected.item(), abs=1e-6)


def test_kl_has_the_gradient_of_cross_entropy_times_the_batch() -> None:
    student, teacher = draw(5, 5, seed=1, scale=3), draw(5, 5, seed=2, scale=3)
    _, kl = value_and_grad(lambda x: video_text_loss(x, teacher, kind="kl", temperature=2.0), student)
    _, ce = value_and_grad(lambda x: video_text_loss(x, teacher, kind="cross_entropy", temperature=2.0), student)
    torch.testing.assert_close(kl, 5 * ce)


def test_smooth_l1_has_its_closed_form() -> None:
    student = torch.tensor([[0.5, 3.0], [0.0, -1.0]])
    assert video_text_loss(student, torch.zeros(2, 2), kind="smooth_l1").item() == pytest.approx(
        (0.125 + 2.5 + 0 + 0.5) / 4
    )


@pytest.mark.parametrize("kind", VIDEO_KINDS)
def test_video_text_loss_does_not_depend_on_the_order_of_texts_and_videos(kind: str) -> None:
    student, teacher = draw(5, 7, seed=1, scale=3), draw(5, 7, seed=2, scale=3)
    rows, columns = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([6, 0, 3, 5, 1, 2, 4])
    before = video_text_loss(student, teacher, kind=kind)
    after = video_text_loss(student[rows][:, columns], teacher[rows][:, columns], kind=kind)
    assert after == pytest.approx(before.item(), abs=1e-6)


@pytest.mark.parametrize("kind", VIDEO_KINDS)
def test_temperature_divides_both_logits(kind: str) -> None:
    student, teacher = draw(5, 5, seed=1, scale=3), draw(5, 5, seed=2, scale=3)
    warm = video_text_loss(student, teacher, kind=kind, temperature=2.5)
    assert torch.equal(warm, video_text_loss(student / 2.5, teacher / 2.5, kind=kind))
    assert abs(warm.item() - video_text_loss(student, teacher, kind=kind).item()) > 1e-3


# Frame-text.


@pytest.mark.parametrize("kind", FRAME_KINDS)
def test_an_all_true_mask_is_no_mask(kind: str) -> None:
    scores, target = draw(4, 6), relevance(4, 6)
    masked = frame_text_loss(scores, target, kind=kind, frame_mask=torch.ones(4, 6, dtype=torch.bool))
    assert torch.equal(masked, frame_text_loss(scores, target, kind=kind))


@pytest.mark.parametrize("kind", FRAME_KINDS)
@pytest.mark.parametrize("junk", [0.0, 1e4, float("nan")])
def test_padded_frames_are_inert_whatever_they_hold(kind: str, junk: float) -> None:
    scores, target = draw(4, 6), relevance(4, 6)
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[:, 6:] = False
    wide_scores = torch.cat([scores, torch.full((4, 3), junk)], 1)
    wide_target = torch.cat([0.25 * target, torch.full((4, 3), abs(junk))], 1)  # the rest went to padding
    plain, plain_grad = value_and_grad(lambda x: frame_text_loss(x, target, kind=kind), scores)
    wide, wide_grad = value_and_grad(
        lambda x: frame_text_loss(x, wide_target, kind=kind, frame_mask=mask), wide_scores
    )
    assert wide.item() == pytest.approx(plain.item(), abs=1e-6)
    torch.testing.assert_close(wide_grad[:, :6], plain_grad, atol=1e-6, rtol=1e-5)
    assert torch.equal(wide_grad[:, 6:], torch.zeros(4, 3))


def test_masked_cross_entropy_is_the_mean_over_all_valid_frames_together() -> None:
    scores, target = draw(2, 4), relevance(2, 4)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    short = -(target[0, :2] / target[0, :2].sum() * scores[0, :2].log_softmax(0)).sum()
    long = -(target[1] * scores[1].log_softmax(0)).sum()
    value = frame_text_loss(scores, target, frame_mask=mask)
    assert value.item() == pytest.approx((short + long).item() / 6, abs=1e-6)


def test_masked_pearson_gives_every_pair_the_same_weight() -> None:
    scores, target = draw(2, 4), relevance(2, 4)
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    short = frame_text_loss(scores[:1, :3], target[:1, :3], kind="pearson")
    long = frame_text_loss(scores[1:], target[1:], kind="pearson")
    value = frame_text_loss(scores, target, kind="pearson", frame_mask=mask)
    assert value.item() == pytest.approx((short + long).item() / 2, abs=1e-6)


@pytest.mark.parametrize("kind", FRAME_KINDS)
def test_a_pair_without_valid_frames_or_relevance_is_left_out(kind: str) -> None:
    scores, target = draw(4, 5), relevance(4, 5)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1] = False
    target[2] = 0
    kept = torch.tensor([0, 3])
    value, grad = value_and_grad(lambda x: frame_text_loss(x, target, kind=kind, frame_mask=mask), scores)
    assert value.item() == pytest.approx(frame_text_loss(scores[kept], target[kept], kind=kind).item(), abs=1e-6)
    assert torch.equal(grad[1:3], torch.zeros(2, 5))


@pytest.mark.parametrize("kind", FRAME_KINDS)
def test_frame_temperature_divides_the_scores_alone(kind: str) -> None:
    scores, target = draw(4, 6), relevance(4, 6)
    warm = frame_text_loss(scores, target, kind=kind, temperature=0.3)
    assert torch.equal(warm, frame_text_loss(scores / 0.3, target, kind=kind))
    assert abs(warm.item() - frame_text_loss(scores, target, kind=kind).item()) > 1e-4


@pytest.mark.parametrize("kind", SOFTMAX_KINDS)
def test_frame_text_loss_is_least_where_weights_equal_relevance(kind: str) -> None:
    target = relevance(4, 6)
    best, grad = value_and_grad(lambda x: frame_text_loss(x, target, kind=kind, temperature=2.0), 2 * target.log())
    assert grad.abs().max() < 1e-6
    assert frame_text_loss(draw(4, 6), target, kind=kind, temperature=2.0) > best + 1e-3


@pytest.mark.parametrize("kind", SOFTMAX_KINDS)
def test_frame_text_loss_ignores_a_shift_of_scores_and_the_scale_of_relevance(kind: str) -> None:
    scores, target = draw(4, 6), relevance(4, 6)
    moved = frame_text_loss(scores + 7, 3 * target, kind=kind)
    assert moved.item() == pytest.approx(frame_text_loss(scores, target, kind=kind).item(), abs=1e-6)


# Correlation.


def test_correlation_distance_has_the_gradient_of_its_formula() -> None:
    student, teacher = draw(3, 5, seed=3).double().requires_grad_(), draw(3, 5, seed=4).double()
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    assert torch.autograd.gradcheck(lambda x: correlation_distance(x, teacher, mask), (student,))


def test_correlation_distance_equals_numpy() -> None:
    student, teacher = draw(3, 50, seed=3), draw(3, 50, seed=4)
    expected = [1 - np.corrcoef(left, right)[0, 1] for left, right in zip(student, teacher, strict=True)]
    np.testing.assert_allclose(correlation_distance(student, teacher), expected, atol=1e-6)


def test_small_differences_on_a_large_row_still_correlate() -> None:
    teacher = draw(1, 1000, seed=5, scale=1e-3)
    student = teacher + draw(1, 1000, seed=6, scale=1e-3)
    expected = 1 - np.corrcoef(student.exp().double(), teacher.exp().double())[0, 1]
    measured = correlation_distance(student.softmax(-1), teacher.softmax(-1))
    assert measured.item() == pytest.approx(expected, abs=1e-4)


# Bad numbers and odd sizes.


@pytest.mark.parametrize("kind", VIDEO_KINDS)
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (torch.zeros(4, 4), draw(4, 4)),
        (draw(4, 4), torch.zeros(4, 4)),
        (torch.full((4, 4), 0.1), torch.full((4, 4), -7.3)),
        (torch.tensor([[2.0]]), torch.tensor([[-1.0]])),
        (draw(1, 4), draw(1, 4, seed=1)),
        (1e4 * torch.eye(4) - 5e3, 1e4 - 2e4 * torch.eye(4)),
        (draw(4, 4, scale=1e4), draw(4, 4, seed=1, scale=1e4)),
    ],
    ids=["constant student", "constant teacher", "both constant", "one pair", "one text", "opposite", "extreme"],
)
def test_video_text_loss_and_its_gradient_are_finite(kind: str, student: Tensor, teacher: Tensor) -> None:
    for temperature in (0.01, 1.0):
        value, grad = value_and_grad(
            lambda x, t=temperature: video_text_loss(x, teacher, kind=kind, temperature=t), student
        )
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("kind", FRAME_KINDS)
@pytest.mark.parametrize(
    ("scores", "target"),
    [
        (torch.zeros(3, 4), relevance(3, 4)),
        (draw(3, 4), torch.full((3, 4), 0.25)),
        (draw(3, 1), torch.ones(3, 1)),
        (draw(1, 4), relevance(1, 4)),
        (draw(3, 4, scale=1e4), relevance(3, 4)),
        (1e4 * torch.eye(3, 4), torch.eye(3, 4).flip(0)),
        (draw(3, 4), torch.zeros(3, 4)),
    ],
    ids=["constant scores", "constant relevance", "one frame", "one pair", "extreme", "one-hot", "no relevance"],
)
def test_frame_text_loss_and_its_gradient_are_finite(kind: str, scores: Tensor, target: Tensor) -> None:
    for temperature in (0.01, 1.0):
        value, grad = value_and_grad(
            lambda x, t=temperature: frame_text_loss(x, target, kind=kind, temperature=t), scores
        )
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()


def test_constant_rows_count_as_uncorrelated_and_give_no_gradient() -> None:
    for size in (1, 4, 333, 4096):
        rows = torch.full((2, size), 1.7)
        value, grad = value_and_grad(
            lambda x, n=size: correlation_distance(x, relevance(2, n)).sum(), rows.softmax(-1)
        )
        assert value.item() == 2
        assert torch.equal(grad, torch.zeros(2, size))


def test_contrastive_loss_is_finite_at_the_extremes() -> None:
    for logits in (torch.zeros(1, 1), draw(4, 4, scale=1e4), 1e4 - 2e4 * torch.eye(4)):
        value, grad = value_and_grad(contrastive_loss, logits)
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()
    assert contrastive_loss(torch.tensor([[5.0]])).item() == 0


@pytest.mark.parametrize("kind", VIDEO_KINDS)
def test_a_number_that_is_not_finite_is_not_hidden(kind: str) -> None:
    student = draw(4, 4)
    student[1, 2] = float("nan")
    assert video_text_loss(student, draw(4, 4, seed=1), kind=kind).isnan()
    assert video_text_loss(draw(4, 4, seed=1), student, kind=kind).isnan()


@pytest.mark.parametrize("kind", FRAME_KINDS)
def test_nan_on_a_valid_frame_is_not_hidden(kind: str) -> None:
    scores, target = draw(4, 4), relevance(4, 4)
    scores[1, 2] = float("nan")
    assert frame_text_loss(scores, target, kind=kind).isnan()
    broken = target.clone()
    broken[1, 2] = float("nan")
    assert frame_text_loss(draw(4, 4), broken, kind=kind).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_losses_are_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = draw(8, 8, scale=5).to(dtype), draw(8, 8, seed=1, scale=5).to(dtype)
    target = relevance(8, 8).to(dtype)
    pairs = [(contrastive_loss(student), contrastive_loss(student.float()))]
    pairs += [
        (video_text_loss(student, teacher, kind=k), video_text_loss(student.float(), teacher.float(), kind=k))
        for k in VIDEO_KINDS
    ]
    pairs += [
        (frame_text_loss(student, target, kind=k), frame_text_loss(student.float(), target.float(), kind=k))
        for k in FRAME_KINDS
    ]
    for value, expected in pairs:
        assert value.dtype == torch.float32
        assert value.shape == ()
        assert torch.equal(value, expected)


def test_autocast_changes_nothing() -> None:
    student, teacher, target = draw(8, 8, scale=5), draw(8, 8, seed=1, scale=5), relevance(8, 8)

    def values() -> list[float]:
        return [
            contrastive_loss(student).item(),
            *(video_text_loss(student, teacher, kind=kind).item() for kind in VIDEO_KINDS),
            *(frame_text_loss(student, target, kind=kind).item() for kind in FRAME_KINDS),
        ]

    expected = values()
    with torch.autocast("cpu", torch.bfloat16):
        assert values() == expected


@pytest.mark.parametrize("kind", VIDEO_KINDS)
def test_no_gradient_reaches_the_teacher(kind: str) -> None:
    teacher = draw(4, 4, seed=1).requires_grad_()
    video_text_loss(draw(4, 4).requires_grad_(), teacher, kind=kind).backward()
    assert teacher.grad is None


# Wrong use.


def test_an_unknown_kind_is_answered_with_the_known_ones() -> None:
    known = re.escape(", ".join(VIDEO_TEXT_LOSSES))
    with pytest.raises(ValueError, match=rf"video-text loss 'mse'; known: {known}, or module:name"):
        video_text_loss(draw(2, 2), draw(2, 2), kind="mse")
    known = re.escape(", ".join(FRAME_TEXT_LOSSES))
    with pytest.raises(ValueError, match=rf"frame-text loss 'mse'; known: {known}, or module:name"):
        frame_text_loss(draw(2, 2), relevance(2, 2), kind="mse")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contrastive_loss(draw(2, 3)), "2 x 3: without positives it must be square"),
        (lambda: contrastive_loss(draw(2, 2), torch.eye(3).bool()), r"positives must be bool of shape \(2, 2\)"),
        (lambda: contrastive_loss(draw(2, 2), torch.eye(2)), "positives must be bool.*got torch.float32"),
        (lambda: contrastive_loss(draw(3)), r"logits_per_text must be a matrix.*got shape \(3,\)"),
        (lambda: contrastive_loss(draw(0, 0)), "at least one element"),
        (lambda: video_text_loss(draw(2, 2), draw(2, 3)), r"teacher_logits has shape \(2, 3\).*\(2, 2\)"),
        (lambda: frame_text_loss(draw(2, 3), relevance(3, 2)), r"frame_relevance has shape \(3, 2\).*\(2, 3\)"),
        (
            lambda: frame_text_loss(draw(2, 3), relevance(2, 3), frame_mask=torch.ones(2, 3)),
            "frame_mask must be bool",
        ),
        (
            lambda: frame_text_loss(draw(2, 3), relevance(2, 3), frame_mask=torch.ones(2, 2).bool()),
            r"frame_mask must be bool of shape \(2, 3\)",
        ),
        (lambda: video_text_loss(draw(2, 2), draw(2, 2), temperature=0), "temperature must be positive, got 0"),
        (lambda: frame_text_loss(draw(2, 2), draw(2, 2), temperature=-1.0), "temperature must be positive"),
    ],
)
def test_wrong_shapes_are_told_in_one_line(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# Options beyond the paper.


def test_binary_cross_entropy_judges_every_frame_against_the_most_relevant_one() -> None:
    scores, target = draw(3, 4), relevance(3, 4)
    chance, wanted = (scores / 2).sigmoid(), target / target.amax(-1, keepdim=True)
    expected = -(wanted * chance.log() + (1 - wanted) * (1 - chance).log()).mean()
    found = frame_text_loss(scores, 5 * target, kind="binary_cross_entropy", temperature=2.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_binary_cross_entropy_wants_all_frames_of_several_events_at_once() -> None:
    target = torch.tensor([[0.5, 0.5, 0.0]])
    both, one = torch.tensor([[9.0, 9.0, -9.0]]), torch.tensor([[9.0, -9.0, -9.0]])
    loss = [frame_text_loss(scores, target, kind="binary_cross_entropy").item() for scores in (both, one)]
    assert loss[0] < 1e-3 < loss[1]


def test_pair_weights_of_one_change_nothing_and_others_weigh_rows_of_both_directions() -> None:
    student, teacher = draw(4, 4), draw(4, 4)
    weights = torch.tensor([0.0, 1.0, 0.5, 2.5])
    for kind in ("pearson", "cross_entropy", "smooth_l1", "kl"):
        plain = video_text_loss(student, teacher, kind=kind)
        same = video_text_loss(student, teacher, kind=kind, pair_weights=torch.ones(4))
        assert same.item() == pytest.approx(plain.item(), rel=1e-6)
        half = [
            video_text_loss(student, teacher, kind=kind, pair_weights=part).item() for part in (weights, 1 - weights)
        ]
        assert sum(half) == pytest.approx(plain.item(), rel=1e-5)
    found = video_text_loss(student, teacher, pair_weights=weights)
    rows = [
        correlation_distance(x.softmax(-1), y.softmax(-1)) for x, y in ((student, teacher), (student.T, teacher.T))
    ]
    assert found.item() == pytest.approx(sum((weights * row).mean() for row in rows).item(), rel=1e-6)


def test_pair_weights_need_pairs() -> None:
    with pytest.raises(ValueError, match=r"one weight per pair of square logits, got \(3,\) for logits \(4, 4\)"):
        video_text_loss(draw(4, 4), draw(4, 4), pair_weights=torch.ones(3))
    with pytest.raises(ValueError, match="square"):
        video_text_loss(draw(3, 4), draw(3, 4), pair_weights=torch.ones(3))


def test_set_loss_is_the_divergence_of_what_each_text_finds() -> None:
    student, target = draw(3, 5), draw(3, 5, seed=1)
    p, q = target.softmax(-1), student.softmax(-1)
    assert frame_set_loss(student, target).item() == pytest.approx(
        (p * (p / q).log()).sum(-1).mean().item(), rel=1e-5
    )
    assert frame_set_loss(student, target).item() > 0.1
    assert frame_set_loss(target + 3, target).item() == pytest.approx(0, abs=1e-6)
    assert not frame_set_loss(student, target.requires_grad_()).requires_grad  # no gradient to who is imitated
    with pytest.raises(ValueError, match="must be equal"):
        frame_set_loss(draw(3, 5), draw(3, 4))


# Weights of pairs.


@pytest.mark.parametrize("kind", FRAME_KINDS)
def test_a_pair_counts_as_often_as_its_weight_in_the_frame_text_mean(kind: str) -> None:
    scores, target = draw(3, 5), relevance(3, 5)
    weights = torch.tensor([0.5, 0.0, 2.0])
    alone = [frame_text_loss(scores[k : k + 1], target[k : k + 1], kind=kind).item() for k in range(3)]
    expected = (0.5 * alone[0] + 2.0 * alone[2]) / 3
    assert frame_text_loss(scores, target, kind=kind, pair_weights=weights).item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 5), ()])
def test_weights_of_another_number_of_pairs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"pair_weights has shape .*; needed \(3,\)"):
        frame_text_loss(draw(3, 5), relevance(3, 5), pair_weights=torch.ones(shape))
    with pytest.raises(ValueError, match="pair_weights needs one weight per pair"):
        video_text_loss(draw(3, 3), draw(3, 3, seed=1), pair_weights=torch.ones(shape))


def test_the_text_text_loss_is_one_less_the_mean_cosine_whatever_the_lengths():
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[5.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    loss = text_text_loss(student, teacher)
    assert loss.item() == pytest.approx((0 + 2 + 1 - 0.5**0.5) / 3)
    loss.backward()
    assert student.grad is not None and student.grad[2].abs().sum() > 0


@pytest.mark.parametrize("kind", ["pearson", "cross_entropy", "kl"])
def test_both_directions_are_the_sum_of_each(kind: str) -> None:
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)) * 3
    both, texts, videos = (
        video_text_loss(student, teacher, kind=kind, direction=direction) for direction in ("both", "texts", "videos")
    )
    assert both.item() == pytest.approx(texts.item() + videos.item(), rel=1e-6)
    assert videos.item() == pytest.approx(
        video_text_loss(student.T, teacher.T, kind=kind, direction="texts").item(), rel=1e-6
    )


def test_a_teacher_temperature_divides_the_teacher_alone() -> None:
    student, teacher = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0)) * 3
    softer = video_text_loss(student, teacher, kind="kl", temperature=2.0, teacher_temperature=3.0)
    assert softer.item() == video_text_loss(student, teacher / 3, kind="kl", temperature=2.0).item()
    same = video_text_loss(student, 3 * student, kind="kl", teacher_temperature=3.0)
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_a_direction_or_teacher_temperature_that_is_not_one_is_refused() -> None:
    logits = torch.eye(3)
    with pytest.raises(ValueError, match="direction is 'rows'; allowed: both, texts, videos"):
        video_text_loss(logits, logits, direction="rows")
    with pytest.raises(ValueError, match="temperature"):
        video_text_loss(logits, logits, teacher_temperature=0)
