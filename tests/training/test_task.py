import numpy as np
import pytest
import torch
from tiny import TinyPixels, TinyRelevance, tiny_batches, tiny_student

from teachclip.losses import contrastive_loss, frame_text_loss, video_text_loss
from teachclip.scoring.inputs import model_inputs
from teachclip.training.task import (
    DistillationTask,
    DistillationTerms,
    Relevance,
    Term,
    confidence_weights,
    pairs_loss,
)


class VideoAlone(TinyRelevance):
    """Relevance without frames."""

    def batch(self, rows, columns, own=slice(None)):
        video_text, _ = super().batch(rows, columns, own)
        return -video_text, None


class FlatFrames(TinyRelevance):
    """The same logits, other frames."""

    def batch(self, rows, columns, own=slice(None)):
        video_text, frame_text = super().batch(rows, columns, own)
        return video_text, torch.ones_like(frame_text) / frame_text.shape[1]


class Upside(TinyRelevance):
    """The opposite logits, the frames in reverse."""

    def batch(self, rows, columns, own=slice(None)):
        video_text, frame_text = super().batch(rows, columns, own)
        return -video_text, frame_text.flip(1)


@pytest.fixture(scope="module")
def losses():
    student = tiny_student().eval()
    with torch.no_grad():
        student.aggregation.score.weight.mul_(300)  # at first all frames weigh the same, whatever is taught

    def compute(*teachers, terms=None, progress=0.0, **options):
        batches = tiny_batches()
        batches.relevances = [kind() for kind, _ in teachers]
        weights = [weight for _, weight in teachers]
        task = DistillationTask(student, terms or DistillationTerms(), stored_weights=weights, **options)
        batch = {**batches[0], "progress": torch.tensor(progress)}
        with torch.no_grad():
            return {name: value.item() for name, value in task(batch).items()}

    return compute


def test_each_term_is_the_weighted_mean_over_the_teachers_that_support_it(losses):
    full, flat, alone = losses((TinyRelevance, 1)), losses((FlatFrames, 1)), losses((VideoAlone, 1))
    mixed = losses((TinyRelevance, 1), (VideoAlone, 3), (FlatFrames, 2))
    assert mixed["frame_text"] == pytest.approx((full["frame_text"] + 2 * flat["frame_text"]) / 3, rel=1e-5)
    assert full["frame_text"] != pytest.approx(flat["frame_text"], rel=1e-3)
    expected = (full["video_text"] + 3 * alone["video_text"] + 2 * flat["video_text"]) / 6
    assert mixed["video_text"] == pytest.approx(expected, rel=1e-5)
    assert full["video_text"] != pytest.approx(alone["video_text"], rel=1e-3)
    total = 0.2 * mixed["contrastive"] + mixed["video_text"] + 2 * mixed["frame_text"]
    assert mixed["loss"] == pytest.approx(total, rel=1e-5)


def test_a_term_that_no_teacher_supports_is_left_out(losses):
    found = losses((VideoAlone, 1), (VideoAlone, 1))
    assert "frame_text" not in found
    assert found["loss"] == pytest.approx(0.2 * found["contrastive"] + found["video_text"], rel=1e-5)


# Several teachers by confidence.


def relevance_of(logits, weight=1.0, frames=None):
    return Relevance(torch.tensor(logits), frames, weight)


def test_a_pair_listens_to_the_teacher_that_is_surer_of_it():
    sure, unsure = [[9.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 9.0]]
    first, second = confidence_weights([relevance_of(sure), relevance_of(unsure)], torch.eye(2, dtype=torch.bool))
    torch.testing.assert_close(first + second, torch.ones(2))
    p = torch.tensor([9.0, 0.0]).softmax(0)[0]
    torch.testing.assert_close(first, torch.stack([p / (p + 0.5), 0.5 / (p + 0.5)]))


def test_confidence_counts_all_columns_of_the_own_video_and_the_weight_of_the_recipe():
    logits = [[1.0, 1.0, 1.0]] * 3
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    first, second = confidence_weights([relevance_of(logits, 3.0), relevance_of(logits)], same)
    torch.testing.assert_close(first, torch.full((3,), 0.75))
    torch.testing.assert_close(second, torch.full((3,), 0.25))


def test_confidence_of_teachers_that_are_far_off_still_adds_up_to_one():
    far, farther = [[0.0, 300.0], [0.0, 0.0]], [[0.0, 400.0], [0.0, 0.0]]
    first, second = confidence_weights([relevance_of(far), relevance_of(farther)], torch.eye(2, dtype=torch.bool))
    torch.testing.assert_close(first, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(second, torch.tensor([0.0, 0.5]))


def test_one_teacher_by_confidence_teaches_as_it_does_alone(losses):
    plain = losses((TinyRelevance, 1))
    by_confidence = losses((TinyRelevance, 1), by_confidence=True)
    assert by_confidence == pytest.approx(plain, rel=1e-6)


def test_by_confidence_two_teachers_are_not_simply_averaged(losses):
    pair = ((TinyRelevance, 1), (FlatFrames, 1))
    assert losses(*pair) == pytest.approx(losses((TinyRelevance, 1), (FlatFrames, 1), by_confidence=True), rel=1e-5)
    other = ((TinyRelevance, 1), (Upside, 1))  # other logits: other confidence
    fixed, sure = losses(*other), losses(*other, by_confidence=True)
    assert sure["frame_text"] != pytest.approx(fixed["frame_text"], rel=1e-4)
    assert sure["video_text"] != pytest.approx(fixed["video_text"], rel=1e-4)


def test_by_confidence_a_teacher_without_frames_leaves_its_share_of_the_frame_term_to_the_others(losses):
    full, flat = losses((TinyRelevance, 1)), losses((FlatFrames, 1))
    one = losses((TinyRelevance, 1), (VideoAlone, 3), by_confidence=True)
    assert one["frame_text"] == pytest.approx(full["frame_text"], rel=1e-5)
    two = losses((TinyRelevance, 1), (VideoAlone, 3), (FlatFrames, 2), by_confidence=True)
    assert two["frame_text"] == pytest.approx((full["frame_text"] + 2 * flat["frame_text"]) / 3, rel=1e-5)
    opposites = losses((TinyRelevance, 3), (Upside, 3), by_confidence=True)  # the same logits, in one teacher less
    assert two["video_text"] == pytest.approx(opposites["video_text"], rel=1e-5)
    assert two["video_text"] != pytest.approx(losses((TinyRelevance, 3), (Upside, 3))["video_text"], rel=1e-4)


# Schedules of weights.


def test_a_weight_moves_linearly_over_the_run(losses):
    terms = DistillationTerms(contrastive=Term(0.2, end_weight=1.0), frame_text=Term(2.0, "cross_entropy"))
    found = losses((TinyRelevance, 1), terms=terms, progress=0.25)
    total = 0.4 * found["contrastive"] + found["video_text"] + 2 * found["frame_text"]
    assert found["loss"] == pytest.approx(total, rel=1e-6)


def test_the_contrastive_term_has_a_temperature_of_its_own(losses):
    batch, student = tiny_batches()[0], tiny_student().eval()
    same_video = batch["video_rows"][:, None] == batch["video_rows"][None, :]
    with torch.no_grad():
        logits = student(**model_inputs(batch)).logits_per_text
    for temperature in (1.0, 4.0):
        task = DistillationTask(student, DistillationTerms(contrastive=Term(0.2, temperature=temperature)))
        assert torch.equal(task(batch)["contrastive"], contrastive_loss(logits / temperature, same_video))


# Prefixes of embeddings that are trained as embeddings.


def prefixed(widths):
    student = tiny_student()
    student.config.matryoshka = widths
    return student


def step(student, terms=None):
    """Return the losses of a step and the gradients of the parameters that have one, by name."""
    task = DistillationTask(student.eval(), terms or DistillationTerms(), stored_weights=(1.0,))
    batches = tiny_batches()
    losses = task(batches[0])
    losses["loss"].backward()
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    return {name: value.item() for name, value in losses.items()}, gradients


def published_step(student):
    """The published total on the student's logits, without the task."""
    batch = tiny_batches()[0]
    out = student.eval()(**model_inputs(batch))
    same_video = batch["video_rows"][:, None] == batch["video_rows"][None, :]
    total = 0.2 * contrastive_loss(out.logits_per_text, same_video)
    total = total + video_text_loss(out.logits_per_text, batch["video_text.0"].float())
    frames = {"kind": "cross_entropy", "temperature": 1.0, "frame_mask": batch["frame_mask"]}
    total = total + 2 * frame_text_loss(out.frame_scores.float(), batch["frame_text.0"], **frames)
    total.backward()
    return total.item(), {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


def test_without_prefixes_loss_and_gradients_are_bit_by_bit_as_published():
    expected, gradients = published_step(tiny_student())
    for widths in ([], [64]):  # the whole embedding has 64 numbers
        losses, found = step(prefixed(widths))
        assert losses["loss"] == expected
        assert found.keys() == gradients.keys() and all(torch.equal(found[name], gradients[name]) for name in found)
    losses, found = step(prefixed([16]))
    assert losses["loss"] != expected and not torch.equal(
        found["backbone.text_projection.weight"], gradients["backbone.text_projection.weight"]
    )


def test_terms_are_means_over_the_prefixes():
    losses, _ = step(prefixed([32, 64, 8]))
    student, batch = tiny_student().eval(), tiny_batches()[0]
    same_video = batch["video_rows"][:, None] == batch["video_rows"][None, :]
    with torch.no_grad():
        out = student(**model_inputs(batch))
        scale = student.backbone.logit_scale.exp()
        texts, videos = out.text_embeds, out.video_embeds
        logits = [
            scale * torch.nn.functional.cosine_similarity(texts[:, None, :width], videos[None, :, :width], dim=-1)
            for width in (64, 32, 8)
        ]
        contrastive = [contrastive_loss(each, same_video).item() for each in logits]
        video_text = [video_text_loss(each, batch["video_text.0"].float()).item() for each in logits]
    assert losses["contrastive"] == pytest.approx(sum(contrastive) / 3, rel=1e-5)
    assert losses["video_text"] == pytest.approx(sum(video_text) / 3, rel=1e-5)
    assert len({round(value, 4) for value in contrastive}) == 3


def test_a_prefix_that_was_trained_finds_more():
    def found(widths, width=4):
        student = prefixed(widths).train()
        task, batches = (
            DistillationTask(student, DistillationTerms(contrastive=Term(1.0))),
            tiny_batches(stored=False),
        )
        optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4)
        for number in range(60):
            optimizer.zero_grad()
            task(batches[number])["loss"].backward()
            optimizer.step()
        pixels = TinyPixels.make()
        inputs = {**pixels.texts(np.arange(pixels.text_count)), **pixels.videos(np.arange(pixels.video_count))}
        with torch.no_grad():
            out = student.eval()(**model_inputs(inputs))
        sides = [
            torch.nn.functional.normalize(side[:, :width], dim=-1) for side in (out.text_embeds, out.video_embeds)
        ]
        best = (sides[0] @ sides[1].T).argmax(dim=1)
        return (best == torch.arange(len(best)) // 2).float().mean().item()

    without, trained = found([]), found([4])
    assert trained > without + 0.2, (trained, without)


def test_texts_and_videos_that_were_dealt_out_are_no_positives_and_no_negatives():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    same_video = torch.eye(5, dtype=torch.bool)
    is_pair = torch.tensor([True, False, True, True, False])
    loss = pairs_loss(logits, same_video, is_pair)
    assert loss == contrastive_loss(logits[is_pair][:, is_pair])
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[~is_pair].eq(0).all() and gradient[:, ~is_pair].eq(0).all()
    assert pairs_loss(logits, same_video) == contrastive_loss(logits, same_video)
    nothing = pairs_loss(logits, same_video, torch.zeros(5, dtype=torch.bool))
    assert nothing == 0 and torch.autograd.grad(nothing, logits)[0].eq(0).all()
