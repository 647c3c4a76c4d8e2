"""Ranks block by block: the same as from the whole matrix, never helped by a tie, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import load_golden

from teachclip.errors import DataError
from teachclip.evaluation.metrics import rank_metrics, sum_of_recalls
from teachclip.evaluation.retrieval import evaluate_retrieval, ranks_from_matrix, retrieval_ranks
from teachclip.evaluation.splits import search_cost
from teachclip.models.adapters import ResidualAdapters

INFO, MATRICES = load_golden("07_metrics")
CASES = {case["name"]: case for case in INFO["cases"]}
WITH_TIES = {"sq_ties_int", "sq_ties_round", "sq_constant"}
WITHOUT_TIES = [name for name in CASES if name not in WITH_TIES]


class TableScorer:
    """Looks its scores up, and keeps the shape of every block that it was asked for."""

    def __init__(self, scores):
        self.scores = torch.as_tensor(scores)
        self.shapes: list[tuple[int, int]] = []

    def score(self, texts, videos):
        self.shapes.append((len(texts["row"]), len(videos["row"])))
        return self.scores[texts["row"]][:, videos["row"]]

    def tokens(self):
        return tuple({"row": torch.arange(size)} for size in self.scores.shape)


class CosineScorer:
    """Scores by a product of embeddings, as the student does."""

    def score(self, texts, videos):
        return texts["embeds"] @ videos["embeds"].T


def owners_of(case):
    return np.repeat(np.arange(len(case["counts"])), case["counts"]) if "counts" in case else None


def case_of(name):
    matrix, case = MATRICES[name], CASES[name]
    return matrix, np.arange(len(matrix)) if case["kind"] == "square" else owners_of(case), case


def ranks_by_hand(scores, owners):
    """Return the ranks from their definition, one comparison at a time."""
    videos = range(scores.shape[1])
    t2v = [1 + sum(bool(scores[c, v] >= scores[c, own]) for v in videos if v != own) for c, own in enumerate(owners)]
    queries = sorted(set(owners.tolist()))
    best = {u: scores[owners == u].max(axis=0) for u in queries}
    v2t = [1 + sum(bool(best[u][v] >= best[v][v]) for u in queries if u != v) for v in queries]
    return t2v, v2t


def streamed(scores, owners, **blocks):
    scorer = TableScorer(scores)
    return retrieval_ranks(scorer, *scorer.tokens(), owners, **blocks)


# the recorded numbers of the official code


def official(metrics):
    names = {"R1": "recall_at_1", "R5": "recall_at_5", "R10": "recall_at_10"}
    names |= {"MedianR": "median_rank", "MeanR": "mean_rank"}
    return {names[key]: value for key, value in metrics.items()}


@pytest.mark.parametrize("name", WITHOUT_TIES)
@pytest.mark.parametrize("block", [None, 7])
def test_metrics_are_the_official_ones_where_no_scores_tie(name, block):
    matrix, owners, case = case_of(name)
    blocks = {"text_block": block, "video_block": block} if block else {}
    for ranks in (ranks_from_matrix(matrix, owners), streamed(matrix, owners, **blocks)):
        # with several captions per video the official code takes torch's median for text to video
        t2v = rank_metrics(ranks.t2v, lower_median=case["kind"] == "multi")
        assert t2v == pytest.approx(official(case["t2v"]), abs=1e-4)
        assert rank_metrics(ranks.v2t) == pytest.approx(official(case["v2t"]), abs=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if "t2v_cols" in CASES[name]])
def test_where_scores_tie_the_official_code_counts_every_tied_rank_and_we_the_last(name):
    matrix, owners, case = case_of(name)
    ranks = ranks_from_matrix(matrix, owners)
    for direction, scores, ours in (("t2v", matrix, ranks.t2v), ("v2t", matrix.T, ranks.v2t)):
        own = np.diag(scores)[:, None]
        higher, equal = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
        tied = [np.arange(first, first + count) + 1 for first, count in zip(higher, equal, strict=True)]
        theirs = np.concatenate(tied)
        assert rank_metrics(theirs) == pytest.approx(official(case[direction]), abs=1e-4)
        assert (len(theirs) > len(matrix)) == (name in WITH_TIES)
        assert ours.tolist() == [ranks_of_query[-1] for ranks_of_query in tied]
        if direction == "t2v":
            assert (theirs - 1).tolist() == case["t2v_cols"]


def test_the_official_code_gives_hits_for_constant_scores_and_we_do_not():
    matrix, owners, case = case_of("sq_constant")
    assert case["t2v"]["R1"] == pytest.approx(100 / 6)
    ranks = ranks_from_matrix(matrix, owners)
    assert ranks.t2v.tolist() == ranks.v2t.tolist() == [6] * 6


# ranks


def random_case(seed):
    """Return few distinct scores (so that many tie), captions in any order, some videos without captions."""
    state = np.random.RandomState(seed)
    captions, videos = state.randint(1, 25), state.randint(1, 12)
    scores = state.randint(0, state.choice([2, 4, 1000]), (captions, videos)).astype(np.float32)
    return scores, state.randint(0, videos, captions)


@pytest.mark.parametrize("seed", range(60))
def test_ranks_follow_their_definition_for_any_blocks(seed):
    scores, owners = random_case(seed)
    t2v, v2t = ranks_by_hand(scores, owners)
    found = [ranks_from_matrix(scores, owners)]
    found += [streamed(scores, owners, text_block=t, video_block=v) for t, v in ((1, 1), (2, 3), (5, 2), (4, 50))]
    for ranks in found:
        assert ranks.t2v.tolist() == t2v
        assert ranks.v2t.tolist() == v2t


def test_the_whole_matrix_is_also_ranked_in_pieces():
    state = np.random.RandomState(0)
    scores, owners = state.randint(0, 50, (2500, 1100)).astype(np.float32), state.randint(0, 1100, 2500)
    whole, parts = ranks_from_matrix(scores, owners), streamed(scores, owners, text_block=333, video_block=500)
    own = scores[np.arange(2500), owners]
    assert np.array_equal(whole.t2v, (scores >= own[:, None]).sum(axis=1))
    assert np.array_equal(whole.t2v, parts.t2v)
    assert np.array_equal(whole.v2t, parts.v2t)


def test_a_video_without_captions_is_a_candidate_but_no_query():
    scores = np.array([[1.0, 0, 2], [0, 1, 0]], np.float32)
    ranks = ranks_from_matrix(scores, np.array([0, 1]))
    assert ranks.t2v.tolist() == [2, 1]
    assert ranks.v2t.tolist() == [1, 1]


def test_a_video_is_found_by_its_best_caption():
    scores = np.array([[0.0, 9], [5, 0], [1, 1], [0, 3]], np.float32)
    ranks = ranks_from_matrix(scores, np.array([0, 0, 1, 1]))
    assert ranks.v2t.tolist() == [1, 2]  # 5 against 1; 3 against 9


def test_equal_scores_everywhere_give_the_last_rank():
    ranks = streamed(np.zeros((5, 5), np.float32), np.arange(5), text_block=2, video_block=2)
    assert ranks.t2v.tolist() == ranks.v2t.tolist() == [5] * 5


@pytest.mark.parametrize("sizes", [(257, 257), (130, 257), (257, 131)])
def test_equal_texts_and_equal_videos_tie_whatever_the_blocks(sizes):
    # 257 = 2 * 128 + 1: a last block of one item would be a product of another kind, with other rounding
    state = torch.Generator().manual_seed(0)
    texts, videos = (torch.nn.functional.normalize(torch.randn(n, 512, generator=state), dim=1) for n in sizes)
    owners = np.arange(sizes[0]) % sizes[1]
    same_videos = {"embeds": videos[:1].expand_as(videos).contiguous()}
    ranks = retrieval_ranks(CosineScorer(), {"embeds": texts}, same_videos, owners)
    assert set(ranks.t2v.tolist()) == {sizes[1]}
    same_texts = {"embeds": texts[:1].expand_as(texts).contiguous()}
    ranks = retrieval_ranks(CosineScorer(), same_texts, {"embeds": videos}, owners)
    assert set(ranks.v2t.tolist()) == {min(sizes)}


def test_rounding_that_depends_on_the_shape_of_a_block_changes_no_rank():
    class RoundingScorer(TableScorer):
        def score(self, texts, videos):
            scores = super().score(texts, videos)
            return scores + 1e-3 * scores.numel()

    scorer = RoundingScorer(np.zeros((23, 11), np.float32))
    ranks = retrieval_ranks(scorer, *scorer.tokens(), np.arange(23) // 3, text_block=5, video_block=4)
    assert set(ranks.t2v.tolist()) == {11}
    assert set(ranks.v2t.tolist()) == {8}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_every_type_of_score_is_ranked(dtype):
    scores, owners = random_case(3)
    scores = torch.from_numpy(scores % 100)
    ranks, expected = streamed(scores.to(dtype), owners), ranks_from_matrix(scores, owners)
    assert np.array_equal(ranks.t2v, expected.t2v)
    assert np.array_equal(ranks.v2t, expected.v2t)


def test_float64_scores_are_not_rounded():
    scores = np.array([[1.0, 1 + 1e-12], [0, 1]])
    assert ranks_from_matrix(scores, np.arange(2)).t2v.tolist() == [2, 1]
    assert ranks_from_matrix(scores[:, ::-1].copy(), np.arange(2)).t2v.tolist() == [1, 2]


def test_the_scores_of_a_scorer_are_not_changed():
    class KeepingScorer(TableScorer):
        def score(self, texts, videos):
            return self.scores[texts["row"][0] : texts["row"][-1] + 1, videos["row"][0] : videos["row"][-1] + 1]

    scores, owners = np.random.RandomState(0).randn(9, 3).astype(np.float32), np.arange(9) // 3
    scorer = KeepingScorer(scores.copy())
    retrieval_ranks(scorer, *scorer.tokens(), owners, text_block=1, video_block=2)
    assert np.array_equal(scorer.scores.numpy(), scores)


# errors


@pytest.mark.parametrize("where", [(0, 0), (2, 1), (3, 0)])
def test_nan_scores_are_an_error_that_counts_them(where):
    scores = np.arange(12, dtype=np.float32).reshape(4, 3)
    scores[where] = scores[1, 1] = np.nan
    for rank in (ranks_from_matrix, lambda *a: streamed(*a, text_block=3, video_block=2)):
        with pytest.raises(DataError, match="2 of 12 scores are NaN"):
            rank(scores, np.array([0, 0, 1, 2]))


def test_infinite_scores_are_ranked():
    scores = np.array([[np.inf, 0], [np.inf, -np.inf]], np.float32)
    assert ranks_from_matrix(scores, np.arange(2)).t2v.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("owners", "named"),
    [
        ([0, 1], "one row for each of 3 captions"),
        ([0.0, 1.0, 1.0], "got float64"),
        ([0, 1, 2], "rows 0 to 2, but there are 2 videos"),
        ([0, 1, -1], "rows -1 to 1"),
    ],
)
def test_captions_that_do_not_fit_the_videos_are_refused(owners, named):
    for rank in (ranks_from_matrix, streamed):
        with pytest.raises(DataError) as error:
            rank(np.zeros((3, 2), np.float32), np.array(owners))
        assert named in str(error.value)


def test_no_captions_blocks_of_nothing_and_uneven_tokens_are_refused():
    with pytest.raises(DataError, match="0 captions"):
        ranks_from_matrix(np.zeros((0, 3)), np.zeros(0, np.int64))
    with pytest.raises(DataError, match="at least 1 item"):
        streamed(np.zeros((2, 2)), np.arange(2), video_block=0)
    tokens = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(DataError, match="same number of items"):
        retrieval_ranks(CosineScorer(), tokens, {"a": torch.zeros(2)}, np.arange(2))


def test_a_scorer_that_swaps_texts_and_videos_is_named():
    class SwappedScorer(TableScorer):
        def score(self, texts, videos):
            return super().score(texts, videos).T

    scorer = SwappedScorer(np.zeros((4, 3)))
    with pytest.raises(DataError, match=r"SwappedScorer.score must be \(texts, videos\) = \(4, 3\), got \(3, 4\)"):
        retrieval_ranks(scorer, *scorer.tokens(), np.array([0, 0, 1, 2]))


# evaluation


def test_evaluation_reports_both_directions_and_their_sum():
    scores, owners = random_case(7)
    scorer = TableScorer(scores)
    found = evaluate_retrieval(scorer, *scorer.tokens(), owners, text_block=3, video_block=4)
    t2v, v2t = map(np.array, ranks_by_hand(scores, owners))
    assert found["t2v"] == rank_metrics(t2v)
    assert found["v2t"] == rank_metrics(v2t)
    assert found["sum_of_recalls"] == sum_of_recalls(rank_metrics(t2v), rank_metrics(v2t))


def test_scores_are_computed_without_gradients():
    class WatchedScorer(CosineScorer):
        def score(self, texts, videos):
            assert not torch.is_grad_enabled()
            return super().score(texts, videos)

    texts = {"embeds": torch.randn(3, 4, requires_grad=True)}
    evaluate_retrieval(WatchedScorer(), texts, {"embeds": torch.randn(3, 4)}, np.arange(3))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_only_when_asked_for(capsys, progress):
    streamed(np.eye(4), np.arange(4), text_block=2, video_block=2, progress=progress)
    assert ("4/4" in capsys.readouterr().err) == progress


def test_no_block_is_larger_than_asked_for_and_little_is_scored_twice():
    owners = np.arange(100) // 2
    scorer = TableScorer(np.zeros((100, 50), np.float32))
    retrieval_ranks(scorer, *scorer.tokens(), owners, text_block=8, video_block=6)
    assert set(scorer.shapes) == {(8, 6)}
    texts, videos = 13, 9
    assert texts * videos < len(scorer.shapes) <= texts * videos + texts + videos


def test_memory_does_not_grow_with_captions_times_videos():
    program = """
import resource, numpy as np, torch
from teachclip.evaluation.retrieval import retrieval_ranks
torch.set_num_threads(1)
class Scorer:
    def score(self, texts, videos):
        return texts["embeds"] @ videos["embeds"].T
def run(n):
    tokens = {"embeds": torch.randn(n, 8)}
    ranks = retrieval_ranks(Scorer(), tokens, tokens, np.arange(n)[::-1].copy(), text_block=256, video_block=256)
    assert len(ranks.t2v) == n
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small = run(600)
print((run(9000) - small) // 1024)
"""
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env)
    assert int(done.stdout) < 40  # MB; the whole matrix would take 324


def test_a_text_adapter_costs_its_two_products_per_query_and_nothing_per_video():
    class Student:
        text_adapter = None

        def score(self, texts, videos):
            return texts["embeds"] @ videos["embeds"].T

    tokens = {"embeds": torch.eye(4)}
    plain = search_cost(Student(), tokens, tokens, candidates=10)
    student = Student()
    student.text_adapter = ResidualAdapters(["text"], 4, 6)["text"]
    with_head = search_cost(student, tokens, tokens, candidates=10)
    assert "text_adapter_flops" not in plain
    assert with_head["text_adapter_flops"] == 2 * 2 * 4 * 6 and with_head["text_adapter_ms"] > 0
    for name in ("bytes_per_video", "flops_per_query", "candidates"):
        assert with_head[name] == plain[name]
