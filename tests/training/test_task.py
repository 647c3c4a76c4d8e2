import pytest
import torch
from tiny import TinyRelevance, tiny_batches, tiny_student

from teachclip.training.task import DistillationTask, DistillationTerms, Relevance, Term, confidence_weights


class VideoAlone(TinyRelevance):
    """Relevance without frames."""

    def batch(self, rows, columns):
        video_text, _ = super().batch(rows, columns)
        return -video_text, None


class FlatFrames(TinyRelevance):
    """The same logits, other frames."""

    def batch(self, rows, columns):
        video_text, frame_text = super().batch(rows, columns)
        return video_text, torch.ones_like(frame_text) / frame_text.shape[1]


class Upside(TinyRelevance):
    """The opposite logits, the frames in reverse."""

    def batch(self, rows, columns):
        video_text, frame_text = super().batch(rows, columns)
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
