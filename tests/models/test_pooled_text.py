"""Text encoders that pool their tokens: the same vectors as by Sentence Transformers, saved, loaded and exported."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from text_models import PAIRS, save_text_model
from tiny_backbones import tiny_backbone
from torch.testing import assert_close
from transformers import AutoTokenizer, BertModel, DistilBertModel, XLMRobertaConfig, XLMRobertaModel

from teachclip.errors import CheckpointError
from teachclip.models.backbone import input_parameters, load_backbone, text_features
from teachclip.models.families import text_positions
from teachclip.models.modeling import StudentModel
from teachclip.models.pooled_text import PooledTextConfig, PooledTextModel, pooling_of
from teachclip.models.text_tower import load_text_model, with_text_model

TEXTS = [PAIRS[0][0], PAIRS[1][1], "a blue circle over a red square over a sea"]


@pytest.fixture(scope="module", params=[BertModel, DistilBertModel])
def plain(request, tmp_path_factory):
    """A folder of transformers alone: with a pooler, and of a kind that has none."""
    return save_text_model(tmp_path_factory.mktemp("plain"), request.param)


def tokens(folder) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return dict(tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False))


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@torch.no_grad()
def test_a_folder_of_sentence_transformers_is_pooled_as_there(plain, tmp_path, mode):
    transformer = Transformer(str(plain))
    model = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), mode), Normalize()]
    )
    model.save(str(tmp_path / "st"))
    assert pooling_of(str(tmp_path / "st")) == mode
    text: Any = load_text_model(str(tmp_path / "st"))
    found = text(**tokens(tmp_path / "st")).pooler_output
    wanted = torch.from_numpy(model.encode(TEXTS))
    assert_close(torch.nn.functional.normalize(found, dim=-1), wanted, rtol=0, atol=1e-6)
    assert "pooler" not in "".join(text.state_dict())  # unused weights would have no gradient


@torch.no_grad()
def test_padding_does_not_count_and_may_be_absent(plain):
    for mode in ("mean", "cls", "max"):
        text: Any = load_text_model(str(plain), pooling=mode)
        batch = tokens(plain)
        longer = {name: torch.nn.functional.pad(tensor, (0, 3)) for name, tensor in batch.items()}
        assert_close(text(**longer).pooler_output, text(**batch).pooler_output, rtol=0, atol=1e-6)
        whole = batch["input_ids"][2:3]
        assert_close(text(whole).pooler_output, text(whole, torch.ones_like(whole)).pooler_output, rtol=0, atol=1e-6)


@torch.no_grad()
def test_dual_encoder_and_student_are_saved_and_loaded_with_it(plain, tmp_path):
    dual = with_text_model(tiny_backbone("clip"), load_text_model(str(plain), pooling="mean"))
    batch = tokens(plain)
    wanted = text_features(dual, batch["input_ids"], batch["attention_mask"])
    dual.save_pretrained(tmp_path / "dual")
    again = load_backbone(tmp_path / "dual")
    assert_close(text_features(again, **batch), wanted, rtol=0, atol=0)
    assert text_positions(again.config) == 16
    assert any(name.startswith("text_model.encoder.embeddings.") for name in input_parameters(again))
    student = StudentModel.from_backbone(again, temporal_layers=1)
    vectors = student.encode_texts(**batch)["embeds"]
    student.save_pretrained(tmp_path / "student")
    loaded = StudentModel.from_pretrained(tmp_path / "student")
    assert_close(loaded.encode_texts(**batch)["embeds"], vectors, rtol=0, atol=0)


def test_positions_are_those_that_texts_can_have():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    encoder = XLMRobertaModel(
        XLMRobertaConfig(**sizes, vocab_size=20, pad_token_id=1, max_position_embeddings=18)
    ).eval()
    dual = with_text_model(tiny_backbone("clip"), PooledTextModel.of(encoder, "mean"))
    assert text_positions(dual.config) == 16  # positions count from behind the padding token's id
    ids = torch.arange(16).remainder(10)[None] + 5
    assert text_features(dual, ids, torch.ones_like(ids)).shape == (1, 32)


def test_other_poolings_and_damaged_files_are_refused(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "st")
    (tmp_path / "st" / "modules.json").write_text(
        json.dumps([{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}])
    )
    (tmp_path / "st" / "1_Pooling").mkdir()
    config = tmp_path / "st" / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}))
    assert pooling_of(str(tmp_path / "st")) == "mean"  # as older versions of the library wrote it
    config.write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}))
    with pytest.raises(CheckpointError, match="pools by mean and cls; supported: one of mean, cls, max"):
        load_text_model(str(tmp_path / "st"))
    assert load_text_model(str(tmp_path / "st"), pooling="cls").config.pooling == "cls"  # type: ignore[attr-defined]
    config.write_text(json.dumps({"pooling_mode": "lasttoken"}))
    with pytest.raises(CheckpointError, match="pools by lasttoken; supported"):
        pooling_of(str(tmp_path / "st"))
    for damaged in (7, {"a": 1}, [], [["mean"]], True):
        config.write_text(json.dumps({"pooling_mode": damaged}))
        with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json pools by .*; supported: one of mean, cls"):
            pooling_of(str(tmp_path / "st"))
    (tmp_path / "st" / "modules.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"modules\.json is damaged"):
        pooling_of(str(tmp_path / "st"))
    with pytest.raises(CheckpointError, match="pooling is 'meen'; allowed: mean, cls, max; did you mean mean"):
        PooledTextConfig(pooling="meen")
