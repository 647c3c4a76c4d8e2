"""CrossEncoders of Sentence Transformers as teachers: pairs of texts and videos, or of texts and frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_models import save_llava, save_reranker, save_video_reranker
from sentence_transformers import CrossEncoder
from tiny_models import FRAMES, SIZE, tiny_student
from torch.testing import assert_close

from teachclip.errors import CheckpointError, DataError, RecipeError
from teachclip.models.raw_inputs import RawTexts
from teachclip.scorer import PairScorer, Shortlist, select_tokens, teacher_traits
from teachclip.scoring.inputs import encode_text_batch, encode_video_batch
from teachers import load_teacher

TEXTS = ["a red circle", "over a blue sea"]
TRUSTED = {"trust_remote_code": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Rerankers of pictures and of videos, as folders."""
    root = tmp_path_factory.mktemp("models")
    save_reranker(root / "pictures", save_llava(root / "llava"))
    save_video_reranker(root / "videos")
    return root


def load(folders, name, **options):
    return load_teacher("cross_encoder", folders / name, **options)


def tokens_of(teacher, videos=3):
    ids = [torch.tensor(row) for row in RawTexts()(TEXTS)["input_ids"]]
    mask = [torch.ones_like(row) for row in ids]
    padded = [torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (ids, mask)]
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (videos, FRAMES, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    valid = torch.ones(videos, FRAMES, dtype=torch.bool)
    valid[1, 2:] = False
    texts = encode_text_batch(teacher, {"input_ids": padded[0], "attention_mask": padded[1]})
    shown = {"frames": frames, "frame_mask": valid, "mean": torch.zeros(3), "std": torch.ones(3)}
    return texts, encode_video_batch(teacher, shown)


def frame_logits(folder, texts, videos):
    """Score every frame with every text by Sentence Transformers alone: (texts, videos, frames)."""
    client = CrossEncoder(str(folder), device="cpu")
    frames = videos["frames"].permute(0, 1, 3, 4, 2).flatten(0, 1).numpy()
    pairs = [(text, Image.fromarray(frame)) for text in TEXTS for frame in frames]
    logits = client.predict(pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    return logits.reshape(len(TEXTS), len(videos["frames"]), FRAMES)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_reranker_of_pictures_scores_every_frame(folders, pooling):
    teacher = load(folders, "pictures", pooling=pooling, scale=3.0, batch_size=5)
    texts, videos = tokens_of(teacher)
    by_frame, mask = frame_logits(folders / "pictures", texts, videos), videos["mask"]
    if pooling == "mean":
        wanted = (by_frame * mask).sum(-1) / mask.sum(-1)
    else:
        wanted = by_frame.masked_fill(~mask, -torch.inf).amax(-1)
    found = teacher.score(texts, videos)
    assert_close(found, 3 * wanted, atol=1e-4, rtol=1e-4)
    assert not found.is_inference() and found.std() > 1e-3
    own = select_tokens(videos, torch.tensor([0, 1]))
    relevance = teacher.frame_relevance(texts, own)
    both = torch.stack([by_frame[0, 0], by_frame[1, 1]]).masked_fill(~mask[:2], -torch.inf)
    assert_close(relevance, (3 * both).softmax(-1), atol=1e-4, rtol=1e-4)
    assert relevance[1, 2:].abs().max() == 0


def test_a_reranker_of_videos_is_given_arrays_that_it_may_not_sample_from(folders):
    teacher = load(folders, "videos", **TRUSTED, frame_rate=0.5, prompt="find", size=SIZE)
    texts, videos = tokens_of(teacher)
    found = teacher.score(texts, videos)
    ((pairs, prompt, options),) = teacher.model[0].seen
    assert prompt == "Find: " and options["processing_kwargs"] == {"video": {"do_sample_frames": False}}
    shown = pairs[[len(pair[1]["video"]["array"]) for pair in pairs].index(2)][1]["video"]
    assert shown["array"].dtype == torch.uint8 and shown["array"].shape == (2, 3, SIZE, SIZE)
    metadata = {"fps": 0.5, "total_num_frames": 2, "duration": 4.0, "frames_indices": [0, 1]}
    assert shown["video_metadata"] == metadata
    # all pairs are the aligned ones, one by one
    assert found.shape == (2, 3) and not teacher.has_frame_relevance
    for column in range(3):
        video = select_tokens(videos, torch.tensor([column, column]))
        assert torch.equal(teacher.score_pairs(texts, video), found[:, column])
    with pytest.raises(DataError, match="it scores whole videos; option modality=image scores their frames"):
        teacher.frame_relevance(texts, videos)


def test_pixels_are_the_stored_frames(folders):
    teacher = load(folders, "videos", **TRUSTED)
    _, videos = tokens_of(teacher)
    again = teacher.encode_videos(videos["frames"].float() / 255, videos["mask"])
    assert torch.equal(again["frames"], videos["frames"])


def test_it_scores_a_shortlist(folders):
    teacher = load(folders, "videos", **TRUSTED)
    assert isinstance(teacher, PairScorer) and teacher_traits(teacher).shortlist == Shortlist("zero_shot", 50, 0.0)
    teacher = load(folders, "videos", **TRUSTED, first="xpool", top=7, margin=2)
    assert teacher_traits(teacher).shortlist == Shortlist("xpool", 7, 2.0)
    for options, part in (({"top": 1}, "videos to score of a text: 1"), ({"margin": -1.0}, "numbers from 0")):
        with pytest.raises(RecipeError, match=part):
            load(folders, "videos", **TRUSTED, **options)


def test_rerankers_that_cannot_teach_are_named(folders, tmp_path):
    with pytest.raises(CheckpointError, match="ByteVideoScorer', which is not part of"):
        load(folders, "videos")
    with pytest.raises(CheckpointError, match="the model takes text, video, message; needed: text and image"):
        load(folders, "videos", **TRUSTED, modality="image")
    with pytest.raises(CheckpointError, match="batch_size is 0"):
        load(folders, "videos", **TRUSTED, batch_size=0)
    tiny_student().save_pretrained(tmp_path / "student")
    with pytest.raises(CheckpointError, match="cannot be loaded as a CrossEncoder"):
        load(tmp_path, "student")
    teacher = load(folders, "pictures")
    texts, videos = tokens_of(teacher)
    teacher.model.predict = lambda *args, **options: np.zeros(3) + np.zeros(2)
    with pytest.raises(DataError, match="the model cannot score a text with a image: operands"):
        teacher.score(texts, videos)
