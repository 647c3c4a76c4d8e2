import pytest
import torch
from tiny import TinyRelevance, tiny_batches, tiny_student

from teachclip.training.task import DistillationTask, DistillationTerms


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


@pytest.fixture(scope="module")
def losses():
    student = tiny_student().eval()
    with torch.no_grad():
        student.aggregation.score.weight.mul_(300)  # at first all frames weigh the same, whatever is taught

    def compute(*teachers):
        batches = tiny_batches()
        batches.relevances = [kind() for kind, _ in teachers]
        task = DistillationTask(student, DistillationTerms(), stored_weights=[weight for _, weight in teachers])
        with torch.no_grad():
            return {name: value.item() for name, value in task(batches[0]).items()}

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
