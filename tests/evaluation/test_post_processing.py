"""Dual softmax and QB-Norm: by their formulas, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_backbones import tiny_backbone

from teachclip.errors import DataError
from teachclip.evaluation.post_processing import PostProcessing, Querybank, dual_softmax, post_processed
from teachclip.evaluation.retrieval import ranks_from_matrix
from teachclip.models.mean_pooling import MeanPooling
from teachclip.scorer import teacher_traits
from teachers.dual_encoder import DualEncoder

HUB = torch.tensor([[0.30, 0.31, 0.10], [0.10, 0.35, 0.05], [0.10, 0.30, 0.28]])
"""Video 1 is close to every text; text 1 is its own."""


class Dot:
    """A scorer whose logits are scaled dot products with a bias."""

    def __init__(self, scale=1.0, bias=0.0):
        self.scale, self.bias = scale, bias

    def encode_texts(self, input_ids, attention_mask):
        return {"x": input_ids}

    def score(self, texts, videos):
        return self.scale * texts["x"] @ videos["x"].T + self.bias


class Bank:
    """Texts of a bank."""

    def __init__(self, vectors):
        self.vectors, self.text_count = vectors, len(vectors)

    def texts(self, rows):
        return {"input_ids": self.vectors[rows], "attention_mask": torch.ones(len(rows), 1)}


def test_dual_softmax_is_the_product_with_the_share_among_competing_queries():
    for dim in (0, 1):
        exps = np.exp(50 * HUB.numpy())
        expected = HUB.numpy() * exps / exps.sum(axis=dim, keepdims=True)
        np.testing.assert_allclose(dual_softmax(HUB, 50.0, dim).numpy(), expected, rtol=1e-5)


def test_dual_softmax_keeps_the_order_of_negative_scores():
    moved = dual_softmax(HUB - 1, 50.0, 0)
    assert moved.min() >= 0 and torch.equal(moved.argmax(dim=1), torch.tensor([0, 1, 2]))


def test_the_inverted_softmax_divides_by_the_bank_where_the_first_video_is_active():
    bank_scores = torch.tensor([[0.1, 0.4, 0.1], [0.2, 0.5, 0.1], [0.1, 0.3, 0.2]])
    bank = Querybank.of([bank_scores[:2], bank_scores[2:]])
    assert bank.active.tolist() == [False, True, False] and bank.queries == 3
    texts = torch.tensor([[0.1, 0.3, 0.25], [0.5, 0.4, 0.1]])
    found = bank.normalise(texts)
    by_hand = np.exp(20 * texts[0].numpy()) / np.exp(20 * bank_scores.numpy()).sum(axis=0)
    np.testing.assert_allclose(found[0].exp().numpy(), by_hand, rtol=1e-4)
    assert torch.equal(found[1], texts[1])  # its first video is of no query of the bank
    assert bank.changes(texts).tolist() == [True, False]


@pytest.mark.parametrize(("scale", "bias"), [(50.0, 0.0), (100.0, -10.0)])
def test_a_hub_is_corrected_whatever_the_logits_are(scale, bias):
    videos, owners = torch.eye(3), np.array([0, 1, 2])
    assert ranks_from_matrix(HUB, owners).t2v.tolist() == [2, 1, 2]
    bank = Bank(torch.tensor([[0.0, 0.05, 0.0]] * 5))
    wanted = PostProcessing(("dual_softmax", "qb_norm"), bank, scale, bias)
    scorer = Dot(scale, bias)
    dual, norm = post_processed(scorer, {"x": HUB}, {"x": videos}, owners, wanted, block=2, device="cpu")
    assert (dual["name"], norm["name"]) == ("dual softmax", "QB-Norm")
    assert dual["t2v"]["recall_at_1"] == norm["t2v"]["recall_at_1"] == 100
    assert (norm["bank"], norm["normalised"]) == (5, 100.0) and "v2t" in dual and "v2t" not in norm


def test_a_bank_is_encoded_in_the_precision_of_the_videos_and_needs_a_query():
    class Tower(Dot):
        def encode_texts(self, input_ids, attention_mask):
            product = input_ids @ torch.eye(3)
            seen.append(product.dtype)
            return {"x": product}

    seen = []
    for precision in ("float32", "bfloat16"):
        wanted = PostProcessing(("qb_norm",), Bank(torch.tensor([[0.0, 0.05, 0.0]])))
        args = Tower(), {"x": HUB}, {"x": torch.eye(3)}, np.arange(3), wanted
        post_processed(*args, block=2, device="cpu", precision=precision)
    assert seen == [torch.float32, torch.bfloat16]
    with pytest.raises(DataError, match="the training split has no captions"):
        Querybank.of([])


@torch.no_grad()
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_scorers_on_a_dual_encoder_say_how_cosines_become_their_logits(family):
    backbone = tiny_backbone(family)
    frame = torch.nn.functional.normalize(torch.randn(3, 1, 8), dim=-1)
    text, mask = frame[:, 0], torch.ones(3, 1).bool()
    pooling, teacher = MeanPooling(backbone), DualEncoder(backbone)
    logits = {
        pooling: pooling.score({"embeds": text}, {"embeds": text}),
        teacher: teacher.score({"sentence": text}, {"frames": frame, "mask": mask}),
    }
    for scorer, found in logits.items():
        scale, bias = teacher_traits(scorer).scale_and_bias()
        torch.testing.assert_close((found - bias) / scale, text @ text.T, rtol=0, atol=1e-5)
