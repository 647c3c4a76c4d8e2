"""Training texts beyond the batch in the video-text term."""

import pytest
import torch
from tiny import TinyPixels, tiny_batches, tiny_student
from torch.testing import assert_close

from teachclip.errors import LaunchError
from teachclip.losses import video_text_loss
from teachclip.processes import Processes
from teachclip.training.more_texts import MORE, MoreTexts
from teachclip.training.task import DistillationTask, DistillationTerms, Term

ONLY = DistillationTerms(contrastive=Term(0.0), video_text=Term(1.0, "kl"), frame_text=Term(0.0, "cross_entropy"))


def batches(count=6, processes=None):
    made = tiny_batches(processes)
    made.more = MoreTexts(TinyPixels.make(), count, seed=3)
    return made


def rows_of(batch):
    """Which texts a batch holds beyond its own: those whose ids they have."""
    ids = TinyPixels.make().ids
    return [int((ids == text).all(dim=1).nonzero()[0, 0]) for text in batch[f"{MORE}input_ids"]]


def test_a_step_has_other_texts_than_its_own_with_their_relevance_to_its_videos():
    made = batches()
    one, other = made[0], made[1]
    rows = rows_of(one)
    assert len(set(rows)) == 6 and not set(rows) & set(one["rows"].tolist())
    assert rows != rows_of(other) and rows == rows_of(batches()[0])
    assert torch.equal(one[f"{MORE}video_text.0"], made.relevances[0].logits[rows][:, one["video_rows"]])


def test_processes_share_the_texts_of_a_step():
    whole = batches()[2]
    parts = [batches(processes=Processes(index, 2))[2] for index in range(2)]
    for name in (f"{MORE}input_ids", f"{MORE}video_text.0"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
    with pytest.raises(LaunchError, match=r"losses\.video_text\.more_texts is 5, not a multiple of 2 processes"):
        batches(5, Processes(0, 2))[0]


@pytest.mark.parametrize("kind", ["pearson", "kl", "smooth_l1"])
def test_the_term_is_that_of_all_rows(kind):
    terms = DistillationTerms(Term(0.2), Term(0.7, kind), Term(2.0, "cross_entropy"))
    student, batch = tiny_student(), batches()[0]
    losses = DistillationTask(student, terms, stored_weights=[1.0])(batch)
    out = student(batch["input_ids"], batch["attention_mask"], _pixels(batch), batch["frame_mask"])
    more = student.encode_texts(batch[f"{MORE}input_ids"], batch[f"{MORE}attention_mask"])
    texts = torch.cat([out.text_embeds, more["embeds"]])
    logits = student.score({"embeds": texts}, {"embeds": out.video_embeds})
    relevance = torch.cat([batch["video_text.0"], batch[f"{MORE}video_text.0"]])
    assert logits.shape == (14, 8)
    assert_close(losses["video_text"], video_text_loss(logits, relevance, kind=kind), rtol=1e-4, atol=1e-5)
    parts = 0.2 * losses["contrastive"] + 0.7 * losses["video_text"] + 2.0 * losses["frame_text"]
    assert_close(losses["loss"], parts)


def _pixels(batch):
    return (batch["frames"].float() / 255 - 0.5) / 0.5


def test_all_texts_of_a_video_teach_as_one_large_batch_would():
    """With all texts beyond the batch the loss does not depend on which of them are the batch's own."""
    made = batches(TinyPixels.make().text_count - 8)
    batch = made[0]
    losses = DistillationTask(tiny_student(), ONLY, stored_weights=[1.0])(batch)
    student, inputs = tiny_student(), TinyPixels.make()
    texts = student.encode_texts(inputs.ids, torch.ones_like(inputs.ids))
    videos = student.encode_videos(_pixels(batch), batch["frame_mask"])
    relevance = made.relevances[0].logits[:, batch["video_rows"]]
    expected = video_text_loss(student.score(texts, videos), relevance, kind="kl")
    assert_close(losses["loss"], expected, rtol=1e-4, atol=1e-5)


def test_further_texts_train_the_text_encoder():
    gradients = []
    for made in (tiny_batches(), batches()):
        student = tiny_student()
        DistillationTask(student, ONLY, stored_weights=[1.0])(made[0])["loss"].backward()
        gradients.append(student.backbone.text_model.encoder.layers[0].mlp.fc1.weight.grad.clone())
    assert (gradients[0] - gradients[1]).abs().max() > 1e-4


def test_without_further_texts_the_loss_is_as_before():
    task = DistillationTask(tiny_student(), ONLY, stored_weights=[1.0])
    batch = batches()[0]
    plain = {name: tensor for name, tensor in batch.items() if not name.startswith(MORE)}
    assert torch.equal(task(plain)["loss"], task(tiny_batches()[0])["loss"])
    assert not torch.equal(task(plain)["loss"], task(batch)["loss"])
