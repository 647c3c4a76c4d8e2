"""Pre-training of the tiny CLIP, and its tokenizer."""

import json

import pytest
import torch
from transformers import AutoTokenizer, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from teachclip.errors import DataError, TrainingError
from teachclip.models.clip import load_clip
from teachclip.pretraining import clip as pretrain
from teachclip.pretraining.clip import ClipSettings, build_tiny_clip
from teachclip.shapes.captions import describe_event, vocabulary
from teachclip.shapes.pretraining import (
    MAX_TOKENS,
    PretrainingSettings,
    pretrain_clip,
    shapes_tokenizer,
    single_frames,
)
from teachclip.shapes.scenes import Purpose, sample_event, stream

TINY = PretrainingSettings(frames=16, steps=2, batch_size=8, width=64, vision_layers=1, text_layers=1)


@pytest.fixture(scope="module")
def tokenizer():
    return shapes_tokenizer()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, pretrain_clip(folder, TINY, progress=False)


def test_every_word_of_the_dataset_is_one_token(tokenizer):
    for word in vocabulary():
        assert len(tokenizer(word)["input_ids"]) == 3, word
    ids = [tokenizer(word)["input_ids"][1] for word in vocabulary()]
    assert len(set(ids)) == len(ids)


def test_specials_stand_at_the_ends_and_end_of_text_has_the_highest_id(tokenizer):
    ids = tokenizer("a red ring")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1 == max(ids)


def test_case_and_spaces_do_not_matter(tokenizer):
    assert tokenizer("A  Red\nRing")["input_ids"] == tokenizer("a red ring")["input_ids"]


@pytest.mark.parametrize("text", ["a furry ring", "une élève", "ring 42!", "日本"])
def test_unknown_words_are_spelled_and_do_not_end_the_text(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1 and len(ids) > 3
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_captions_fit_the_position_table(tokenizer):
    rng = stream(Purpose.TRAIN_CAPTION, 0)
    texts = [
        f"{describe_event(sample_event(rng), rng, 0).text} then a big red ring at the top over sea" for _ in range(9)
    ]
    assert max(map(len, tokenizer(texts)["input_ids"])) <= 28 <= MAX_TOKENS


@pytest.mark.parametrize("loader", [AutoTokenizer, CLIPTokenizer])
def test_the_tokenizer_round_trips(made, tokenizer, loader):
    loaded = loader.from_pretrained(made[0])
    texts = ["a red ring at the top", "a furry thing", "A BIG cross then a ring"]
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert loaded(texts, padding=True)["input_ids"] == tokenizer(texts, padding=True)["input_ids"]
    assert (loaded.pad_token_id, loaded.model_max_length) == (tokenizer.pad_token_id, MAX_TOKENS)


def test_the_folder_loads_as_a_clip_with_its_image_settings(made):
    folder, results = made
    clip = load_clip(folder)
    assert clip.config.vision_config.image_size == 64
    assert clip.config.text_config.eos_token_id == clip.config.text_config.vocab_size - 1
    assert 0 <= results["accuracy"] <= 1 and 0 <= results["frame_recall_at_1"] <= 100
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    assert processor.size["shortest_edge"] == processor.crop_size["height"] == 64
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_mean"][0] == pytest.approx(0.48145466)


def test_the_same_settings_give_the_same_weights_and_another_seed_others(made, tmp_path):
    torch.manual_seed(99)  # must not matter
    results = pretrain_clip(tmp_path, TINY, progress=False)
    assert results == made[1]
    weights = (made[0] / "model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    pretrain_clip(tmp_path, PretrainingSettings(**{**TINY.__dict__, "seed": 1}), progress=False)
    assert (tmp_path / "model.safetensors").read_bytes() != weights


def test_pre_training_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pretrain_clip(tmp_path, TINY, progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_heads_follow_the_rule_of_official_state_dicts(tokenizer):
    config = build_tiny_clip(ClipSettings(), tokenizer, 64).config
    for encoder in (config.text_config, config.vision_config):
        assert (encoder.hidden_size, encoder.num_attention_heads, encoder.hidden_act) == (128, 2, "quick_gelu")
    assert (config.projection_dim, config.vision_config.patch_size) == (128, 16)


def test_words_never_seen_say_nothing(made):
    folder, _ = made
    table = load_clip(folder).text_model.embeddings.token_embedding.weight
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    letters = tokenizer("q")["input_ids"][1:-1]
    assert table[letters].abs().sum() == 0
    assert (table[tokenizer("a")["input_ids"]].abs().sum(dim=1) > 0).all()


def test_training_learns_to_match(tokenizer):
    settings = PretrainingSettings(
        frames=24, steps=60, batch_size=24, width=64, vision_layers=1, text_layers=1, lr=3e-3
    )
    torch.manual_seed(0)
    clip = build_tiny_clip(settings.clip_settings(), tokenizer, 64)
    data = single_frames(settings, tokenizer, count=24, index=0)
    before = pretrain.frame_recall_at_1(clip, data)
    pretrain.train(clip, data, settings.clip_settings(), progress=False)
    assert before < 30 and pretrain.frame_recall_at_1(clip, data) > 60


def test_a_loss_that_is_not_finite_stops_the_training(tokenizer):
    clip = build_tiny_clip(TINY.clip_settings(), tokenizer, 64)
    data = single_frames(TINY, tokenizer, count=16, index=0)
    with torch.no_grad():
        clip.logit_scale.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at step 0"):
        pretrain.train(clip, data, TINY.clip_settings(), progress=False)


def test_the_rate_rises_and_falls():
    rates = [pretrain.one_cycle(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[54] == pytest.approx(0.5) and rates[-1] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("values", [{"batch_size": 1}, {"batch_size": 9, "frames": 8}, {"steps": 0}])
def test_settings_that_cannot_train_are_refused(values):
    with pytest.raises(DataError, match="allowed"):
        PretrainingSettings(**values)
