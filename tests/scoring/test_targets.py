from pathlib import Path

import numpy as np
import pytest
import torch

from teachclip.scoring.targets import (
    SHARPEST,
    frame_spread,
    sharpening,
    teacher_confidence,
    tempered_relevance,
    video_frame_targets,
)


def softmax(values: np.ndarray) -> np.ndarray:
    power = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True))
    return power / power.sum(axis=1, keepdims=True)


@pytest.fixture
def stored() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Relevance (11 captions, 6 frames), logits (11, 5 videos), and the video of each caption, in mixed order."""
    state = np.random.RandomState(0)
    owners = np.array([3, 0, 1, 1, 4, 2, 0, 0, 2, 3, 0])
    return softmax(state.standard_normal((11, 6))), 4 * state.standard_normal((11, 5)), owners


# Confidence.


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_confidence_is_the_softmax_at_the_own_video(stored, temperature: float) -> None:
    _, logits, owners = stored
    expected = softmax(logits / temperature)[np.arange(11), owners]
    measured = teacher_confidence(logits, owners, temperature=temperature)
    assert measured.dtype == np.float32
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


@pytest.mark.parametrize("block", [1, 4, 11, 100])
def test_confidence_does_not_depend_on_the_block(stored, block: int) -> None:
    _, logits, owners = stored
    asked: list[tuple[int, int]] = []

    def read(rows: slice) -> np.ndarray:
        asked.append((rows.start, rows.stop))
        return logits[rows]

    np.testing.assert_array_equal(teacher_confidence(read, owners, block=block), teacher_confidence(logits, owners))
    assert max(stop - start for start, stop in asked) <= block
    assert [row for start, stop in asked for row in range(start, stop)] == list(range(11))


def test_confidence_is_stable_for_extreme_logits() -> None:
    logits = np.array([[6e4, -6e4, 6e4], [-6e4, 6e4, 0], [1e4, 1e4, 1e4]], dtype=np.float16)
    measured = teacher_confidence(logits, np.array([0, 0, 2]))
    np.testing.assert_allclose(measured, [0.5, 0, 1 / 3], rtol=1e-6)


def test_confidence_reads_a_memory_mapped_half_precision_file_and_leaves_it_alone(stored, tmp_path: Path) -> None:
    _, logits, owners = stored
    np.save(tmp_path / "logits.npy", logits.astype(np.float16))
    mapped = np.load(tmp_path / "logits.npy", mmap_mode="r+")
    expected = softmax(logits.astype(np.float16))[np.arange(11), owners]
    np.testing.assert_allclose(teacher_confidence(mapped, owners, block=4), expected, rtol=1e-5)
    np.testing.assert_array_equal(mapped, logits.astype(np.float16))


def test_confidence_leaves_a_float32_array_alone(stored) -> None:
    logits = stored[1].astype(np.float32)
    before = logits.copy()
    teacher_confidence(logits, stored[2])
    np.testing.assert_array_equal(logits, before)


# Targets.


def test_targets_are_the_confidence_weighted_mean_of_a_videos_captions(stored) -> None:
    relevance, logits, owners = stored
    confidence = teacher_confidence(logits, owners)
    expected = np.stack(
        [np.average(relevance[owners == video], axis=0, weights=confidence[owners == video]) for video in range(5)]
    )
    targets = video_frame_targets(relevance, confidence, owners)
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, expected, rtol=1e-5)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)


def test_one_sure_caption_outweighs_the_unsure_ones() -> None:
    relevance = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    targets = video_frame_targets(relevance, np.array([1.0, 1e-9, 1e-9]), np.array([0, 0, 0]))
    np.testing.assert_allclose(targets, [[0.9, 0.1]], atol=1e-6)


def test_the_order_of_captions_does_not_matter(stored) -> None:
    relevance, logits, owners = stored
    confidence = teacher_confidence(logits, owners)
    order = np.random.RandomState(1).permutation(11)
    np.testing.assert_allclose(
        video_frame_targets(relevance[order], confidence[order], owners[order]),
        video_frame_targets(relevance, confidence, owners),
        rtol=1e-6,
    )


def test_a_video_with_one_caption_keeps_its_relevance(stored) -> None:
    relevance = stored[0]
    targets = video_frame_targets(relevance, np.full(11, 1e-3), np.arange(11))
    np.testing.assert_allclose(targets, relevance, rtol=1e-6)


def test_captions_count_alike_where_every_confidence_vanished(stored) -> None:
    relevance, _, owners = stored
    confidence = np.where(owners == 0, 0, 0.5).astype(np.float32)
    targets = video_frame_targets(relevance, confidence, owners)
    np.testing.assert_allclose(targets[0], relevance[owners == 0].mean(axis=0), rtol=1e-6)


def test_denormal_confidences_still_weigh() -> None:
    relevance = np.array([[1.0, 0.0], [0.0, 1.0]])
    targets = video_frame_targets(relevance, np.array([3e-45, 1.5e-45], dtype=np.float32), np.array([0, 0]))
    np.testing.assert_allclose(targets, [[2 / 3, 1 / 3]], rtol=1e-6)


def test_padded_frames_get_nothing_and_valid_ones_sum_to_one(stored) -> None:
    relevance, logits, owners = stored
    confidence = teacher_confidence(logits, owners)
    mask = np.ones((5, 6), dtype=bool)
    mask[1, 4:] = False
    mask[3, 1:] = False
    full = video_frame_targets(relevance, confidence, owners)
    targets = video_frame_targets(relevance, confidence, owners, frame_mask=mask)
    np.testing.assert_allclose(targets[1, :4], full[1, :4] / full[1, :4].sum(), rtol=1e-5)
    np.testing.assert_array_equal(targets[3], [1, 0, 0, 0, 0, 0])
    assert not targets[~mask].any()
    np.testing.assert_allclose(targets[[0, 2, 4]], full[[0, 2, 4]], rtol=1e-6)


@pytest.mark.parametrize("block", [1, 4, 11])
def test_targets_do_not_depend_on_the_block(stored, block: int) -> None:
    relevance, logits, owners = stored
    confidence = teacher_confidence(logits, owners)
    streamed = video_frame_targets(lambda rows: relevance[rows], confidence, owners, block=block)
    np.testing.assert_allclose(streamed, video_frame_targets(relevance, confidence, owners), rtol=1e-6)


# Wrong use.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, c, o: video_frame_targets(r, c[:-1], o), r"confidence has shape \(10,\), but .* has \(11,\)"),
        (lambda r, c, o: video_frame_targets(r[:-1], c, o), "frame_relevance has 10 captions, but .* has 11"),
        (lambda r, c, o: video_frame_targets(r, c, o + (o > 1)), "video 2 has no caption"),
        (
            lambda r, c, o: video_frame_targets(r, c, o, frame_mask=np.ones((4, 6), dtype=bool)),
            "names video 4, but frame_mask has 4 videos",
        ),
        (
            lambda r, c, o: video_frame_targets(r, c, o, frame_mask=np.ones((6, 6), dtype=bool)),
            "video 5 has no caption",
        ),
        (
            lambda r, c, o: video_frame_targets(r, c, o, frame_mask=np.ones((5, 7), dtype=bool)),
            r"frame_mask must be bool of shape \(5, 6\)",
        ),
        (
            lambda r, c, o: video_frame_targets(r, c, o, frame_mask=np.arange(5)[:, None] != np.full(6, 2)),
            "video 2 has no relevance on any valid frame",
        ),
        (lambda r, c, o: video_frame_targets(r, -c, o), "confidence must be finite and not negative"),
        (lambda r, c, o: video_frame_targets(r, c * np.nan, o), "confidence must be finite and not negative"),
        (lambda r, c, o: video_frame_targets(r - 1, c, o), "negative or no numbers"),
        (lambda r, c, o: video_frame_targets(r * np.nan, c, o), "negative or no numbers"),
        (lambda r, c, o: video_frame_targets(r, c, o - 1), "one video row >= 0 per caption"),
        (lambda r, c, o: video_frame_targets(r, c, o.astype(float)), "one video row >= 0 per caption"),
        (lambda r, c, o: video_frame_targets(r[:0], c[:0], o[:0]), "one video row >= 0 per caption"),
        (lambda r, c, o: video_frame_targets(lambda rows: r[:2], c, o), "rows 0 to 10 must be a matrix of that"),
        (lambda r, c, o: teacher_confidence(r[:, :4], o), "names video 4, but logits have 4 videos"),
        (lambda r, c, o: teacher_confidence(r[:5], o), "logits has 5 captions, but caption_videos has 11"),
        (lambda r, c, o: teacher_confidence(r, o, temperature=0), "temperature must be positive"),
        (
            lambda r, c, o: teacher_confidence(np.where(np.arange(11)[:, None] == 7, np.inf, r), o, block=3),
            "logits of caption 7 are not finite",
        ),
    ],
)
def test_wrong_input_is_told_in_one_line(stored, call, message: str) -> None:
    relevance, logits, owners = stored
    with pytest.raises(ValueError, match=message) as caught:
        call(relevance, teacher_confidence(logits, owners), owners)
    assert "\n" not in str(caught.value)


# Frame temperature.


def test_tempered_relevance_is_the_softmax_of_the_scores_over_the_temperature() -> None:
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * 5
    for temperature in (0.05, 0.5, 1.0, 2.0, 100.0):
        found = tempered_relevance(scores.softmax(-1), temperature)
        torch.testing.assert_close(found, (scores / temperature).softmax(-1), atol=1e-5, rtol=1e-4)


def test_tempered_relevance_keeps_padded_frames_and_empty_rows_empty() -> None:
    relevance = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.0, 0.0]])
    found = tempered_relevance(relevance, 0.5)
    torch.testing.assert_close(found, torch.tensor([[16 / 17, 1 / 17, 0.0], [0.0, 0.0, 0.0]]))
    assert tempered_relevance(relevance, 1.0) is relevance
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        tempered_relevance(relevance, 0)


# Clipped targets.


def test_a_clipped_target_is_full_where_enough_of_the_confident_captions_agree() -> None:
    relevance = np.array([[0.8, 0.2, 0.0], [0.0, 0.5, 0.5], [0.0, 0.1, 0.9]])
    confidence, owners = np.array([0.5, 0.25, 0.25]), np.zeros(3, dtype=int)
    relative = relevance / relevance.max(axis=1, keepdims=True)
    share = (confidence[:, None] * relative).sum(0)  # how many captions look at a frame: .5, .403, .5
    for saturation in (0.25, 0.45, 1.0):
        expected = np.minimum(share / saturation, 1)
        found = video_frame_targets(relevance, 3 * confidence, owners, saturation=saturation)[0]
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-6)
    assert video_frame_targets(relevance, confidence, owners, saturation=0.25)[0].tolist() == pytest.approx(
        [1 / 3] * 3
    )


def test_a_clipped_target_does_not_mind_how_sharply_a_caption_looks() -> None:
    sharp, flat = np.array([[1.0, 0.0, 0.0, 0.0]]), np.array([[0.0, 0.4, 0.3, 0.3]])
    found = video_frame_targets(np.concatenate([sharp, flat]), np.ones(2), np.zeros(2, dtype=int), saturation=0.5)[0]
    assert found[0] == pytest.approx(found[1])  # without clipping the sharp one would get 2.5 times as much


@pytest.mark.parametrize("saturation", [0.0, -1.0, 1.5])
def test_a_clip_is_a_share(stored, saturation: float) -> None:
    relevance, _, owners = stored
    with pytest.raises(ValueError, match="saturation must be above 0 and at most 1"):
        video_frame_targets(relevance, np.ones(11), owners, saturation=saturation)


# Spread.


def test_spread_is_the_share_of_frames_that_relevance_is_of() -> None:
    one, all_four = torch.tensor([[0.0, 1.0, 0.0, 0.0]]), torch.full((3, 4), 0.25)
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert frame_spread(all_four) == pytest.approx(1)
    assert frame_spread(half) == pytest.approx(0.5)
    assert frame_spread(one) == pytest.approx(0.25)
    assert frame_spread(torch.cat([all_four, half, one])) == pytest.approx(1)  # a few do not decide
    assert frame_spread(10 * half) == pytest.approx(0.5)


def test_what_float16_rounds_to_zero_does_not_make_sharp_relevance_flat() -> None:
    sharp = (20 * torch.from_numpy(np.random.RandomState(0).standard_normal((200, 12)))).softmax(-1)
    assert frame_spread(sharp.half().float()) == pytest.approx(frame_spread(sharp), rel=1e-3)
    assert sharpening(sharp.half().float(), 0.25) == 1


@pytest.mark.parametrize("spread", [0.2, 0.5, 0.9])
def test_flat_relevance_is_sharpened_as_far_as_asked_and_sharp_relevance_not_at_all(spread: float) -> None:
    cosines = torch.from_numpy(np.random.RandomState(0).standard_normal((50, 12)).astype(np.float32)) / 20
    flat = cosines.softmax(-1)
    assert frame_spread(flat) > 0.99
    temperature = sharpening(flat, spread)
    assert SHARPEST < temperature < 1
    assert frame_spread(tempered_relevance(flat, temperature)) == pytest.approx(spread, rel=0.05)
    np.testing.assert_allclose(tempered_relevance(flat, temperature), (cosines / temperature).softmax(-1), atol=1e-5)
    sharp = tempered_relevance(flat, 0.9 * temperature)
    assert sharpening(sharp, spread) == 1


def test_still_and_short_videos_do_not_decide_how_far_the_others_are_sharpened() -> None:
    cosines = torch.from_numpy(np.random.RandomState(0).standard_normal((300, 12)).astype(np.float32)) / 20
    short = torch.zeros(20, 12)
    short[:, :2] = 0.5
    usual = sharpening(cosines.softmax(-1), 0.25)
    mixed = torch.cat([cosines.softmax(-1), torch.full((60, 12), 1 / 12), short])
    assert sharpening(mixed, 0.25) == pytest.approx(usual, rel=0.35)


def test_what_cannot_be_sharpened_stays_and_a_spread_is_checked() -> None:
    assert sharpening(torch.full((2, 4), 0.25), 0.5) == 1
    for spread in (0, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="spread must be above 0 and at most 1"):
            sharpening(torch.full((2, 4), 0.25), spread)
