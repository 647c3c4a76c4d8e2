"""Loading and saving students: exported folders, official files, true sizes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_models import openai_clip_shapes, rule_state, student_shapes
from processes import run_fresh
from safetensors.torch import load_file, save_file
from tiny_models import tiny_batch, tiny_clip, tiny_student, tiny_tokenizer
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoProcessor

from teachclip.errors import CheckpointError
from teachclip.models.mean_pooling import MeanPooling
from teachclip.models.processing import StudentProcessor
from teachclip.models.student import StudentConfig, StudentModel, load_student, student_to_official

CLIP_SHAPES = openai_clip_shapes(width=128, layers=2, patch=8, grid=3, text_width=64, text_layers=1, vocabulary=50)
SHAPES = student_shapes(CLIP_SHAPES, layers=3)


def drop_head(state: dict[str, torch.Tensor]) -> None:
    """Turn a TeachCLIP student into a CLIP4Clip one."""
    for key in [key for key in state if key.startswith("frameLinear")]:
        del state[key]


def error_of(source: object) -> str:
    with pytest.raises(CheckpointError) as error:
        load_student(source)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_auto_classes_load_an_exported_folder_with_equal_outputs(tmp_path: Path) -> None:
    student, batch = tiny_student(mask_padding=False, pooling_temperature=0.2), tiny_batch()
    student.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), StudentConfig)
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, StudentModel)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), StudentProcessor)
    assert isinstance(again.processor, StudentProcessor)
    assert (again.config.mask_padding, again.config.pooling_temperature) == (False, 0.2)
    found, wanted = again(**batch), student(**batch)
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name


def test_load_student_keeps_or_overrides_the_folders_mask_padding(tmp_path: Path) -> None:
    tiny_student(mask_padding=False).save_pretrained(tmp_path)
    assert load_student(tmp_path).mask_padding is False
    assert load_student(str(tmp_path), mask_padding=True).mask_padding is True


def test_a_fresh_process_gives_the_same_embeddings(tmp_path: Path) -> None:
    student = tiny_student()
    student.save_pretrained(tmp_path / "student")
    texts = ["a red circle", "blue square over sea"]
    video = torch.randint(0, 255, (6, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.save(video, tmp_path / "video.pt")
    code = (
        "import sys, torch; from teachclip import load_student; from safetensors.torch import save_file\n"
        "from transformers import AutoModel\n"
        "s = load_student(sys.argv[1] + '/student'); a = AutoModel.from_pretrained(sys.argv[1] + '/student')\n"
        f"v = torch.load(sys.argv[1] + '/video.pt'); t = {texts!r}\n"
        "found = {'text': s.encode_text(t), 'video': s.encode_video([v]), 'auto': a.encode_text(t)}\n"
        "save_file(found, sys.argv[1] + '/found.safetensors')\n"
    )
    done = run_fresh(code, tmp_path)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")
    wanted = student.encode_text(texts, progress=False)
    assert_close(found["text"], wanted, atol=1e-6, rtol=0)
    assert_close(found["auto"], wanted, atol=1e-6, rtol=0)
    assert_close(found["video"], student.encode_video([video], progress=False), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_exports_load_as_saved_and_as_float32(
    tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    student, batch = tiny_student(), tiny_batch()
    wanted = student(**batch)
    tiny_student().to(dtype).save_pretrained(tmp_path)
    kept, full = AutoModel.from_pretrained(tmp_path), load_student(tmp_path)
    assert (kept.dtype, full.dtype) == (dtype, torch.float32)
    for model in (kept, full):
        found = model(**batch)
        assert_close(found.video_embeds, wanted.video_embeds, atol=tolerance, rtol=0)
        assert_close(found.text_embeds, wanted.text_embeds, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("patch", "grid"), [(32, 7), (16, 14)])
def test_true_sizes_of_vit_b_load_with_all_values(patch: int, grid: int) -> None:
    shapes = student_shapes(
        openai_clip_shapes(width=768, layers=12, patch=patch, grid=grid, text_width=512, text_layers=12)
    )
    assert len(shapes) == 355
    state = {
        key: torch.empty(shape, dtype=torch.float16 if len(shape) > 1 else torch.float32).fill_(number / 1024)
        for number, (key, shape) in enumerate(shapes.items())
    }
    student = load_student(state)
    vision, text = student.config.backbone_config.vision_config, student.config.backbone_config.text_config
    assert (vision.patch_size, vision.image_size, vision.num_attention_heads) == (patch, 224, 12)
    assert (text.num_attention_heads, student.config.temporal_heads) == (8, 8)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    number = {key: number / 1024 for number, key in enumerate(shapes)}
    layer = student.backbone.vision_model.encoder.layers[11]
    assert (layer.self_attn.v_proj.weight == number["clip.visual.transformer.resblocks.11.attn.in_proj_weight"]).all()
    assert (student.temporal.layers[3].mlp.fc2.bias == number["transformerClip.resblocks.3.mlp.c_proj.bias"]).all()
    assert (student.aggregation.score.weight == number["frameLinear2.weight"]).all()


def test_official_files_load_and_leave_the_given_tensors_alone(tmp_path: Path) -> None:
    state = rule_state(SHAPES, 5)
    torch.save(state, tmp_path / "best_model.bin")
    student = load_student(tmp_path / "best_model.bin")
    assert student.config.temporal_layers == 3
    direct = load_student(state)
    with torch.no_grad():
        direct.aggregation.hidden.weight.zero_()
    assert state["frameLinear.weight"].any()
    assert torch.equal(student.aggregation.hidden.weight, state["frameLinear.weight"])
    assert student.processor is None and not student.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("frameLinear2.bias"), "1 entry (frameLinear2.bias) missing"),
        (lambda s: s.update(extra=torch.ones(1)), "1 entry (extra) unexpected"),
        (lambda s: s.pop("frame_position_embeddings.weight"), "frame_position_embeddings.weight is missing"),
        (lambda s: s.update({"frameLinear.bias": torch.ones(3)}), "frameLinear.bias: (3,), expected (64,)"),
        (lambda s: s.pop("clip.visual.proj"), "1 entry (clip.visual.proj) missing"),
        (lambda s: s.pop("transformerClip.resblocks.1.ln_2.bias"), "(transformerClip.resblocks.1.ln_2.bias) missing"),
        (
            lambda s: s.update({"transformerClip.resblocks.0.attn.in_proj_weight": torch.ones(64, 64)}),
            "in_proj_weight: (64, 64), expected (192, 64)",
        ),
        (
            lambda s: s.update({"lstm_visual.bias_ih_l0": torch.ones(4)}) or drop_head(s),
            "expected a TeachCLIP or CLIP4Clip (meanP, seqTransf) student, this looks like a CLIP4Clip seqLSTM",
        ),
        (
            lambda s: s.update({"cross.pooler.dense.bias": torch.ones(4)}) or drop_head(s),
            "this looks like a CLIP4Clip tightTransf checkpoint",
        ),
    ],
)
def test_a_damaged_official_state_dict_is_named_in_its_own_names(change: object, message: str) -> None:
    state = rule_state(SHAPES, 5)
    change(state)  # type: ignore[operator]
    assert message in error_of(state)


def test_the_checkpoint_of_another_architecture_is_named(tmp_path: Path) -> None:
    state = rule_state(CLIP_SHAPES, 5)
    torch.save(
        {"state_dict": {"clip.logit_scale": torch.ones(()), "pool_frames.x": torch.ones(1)}}, tmp_path / "x.pth"
    )
    assert "student, this looks like an X-Pool checkpoint" in error_of(tmp_path / "x.pth")
    assert "this looks like an OpenAI CLIP" in error_of(state)


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:9000])


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["more"] = weights.pop("aggregation.score.bias")
    weights["aggregation.hidden.bias"] = torch.ones(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["aggregation.hidden.bias"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def damage_processor(folder: Path) -> None:
    (folder / "processor_config.json").write_text('{"frame_sampling": {"kind": "intervals", "number": 4}}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_weights, "no file named model.safetensors"),
        (damage_weights, "cannot be loaded as a student"),
        (
            drop_weight,
            "1 weight missing (aggregation.score.bias); 1 weight of another shape (aggregation.hidden.bias)",
        ),
        (damage_processor, "frame_sampling"),
        (spoil_weight, "1 of 32 numbers of aggregation.hidden.bias are NaN or infinite"),
    ],
)
@pytest.mark.parametrize("load", [load_student, AutoModel.from_pretrained])
def test_a_damaged_folder_is_named(tmp_path: Path, damage: object, message: str, load: object) -> None:
    tiny_student().save_pretrained(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(CheckpointError) as error:
        load(tmp_path)  # type: ignore[operator]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_official_weights_that_are_infinite_are_named() -> None:
    state = rule_state(SHAPES, 5)
    state["frameLinear.bias"][0] = float("inf")
    assert "1 of 64 numbers of frameLinear.bias are NaN or infinite" in error_of(state)


def test_official_weights_of_a_compiled_or_wrapped_student_load() -> None:
    state = rule_state(SHAPES, 5)
    found = load_student({f"module._orig_mod.{key}": tensor for key, tensor in state.items()})
    assert torch.equal(found.aggregation.hidden.bias, state["frameLinear.bias"])


def zero_shot_folder(folder: Path) -> Path:
    tiny_clip().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_plain_dual_encoder_gives_the_zero_shot_student(tmp_path: Path) -> None:
    student, batch, clip = load_student(zero_shot_folder(tmp_path)), tiny_batch(), tiny_clip()
    assert (student.config.pooling, student.config.temporal_layers) == ("mean", 0)
    pooling = MeanPooling(clip)
    wanted = pooling.encode_videos(batch["pixel_values"], batch["frame_mask"])["embeds"]
    assert_close(student(**batch).video_embeds, wanted, atol=1e-6, rtol=0)
    ids = batch["input_ids"]
    wanted = pooling.encode_texts(ids, torch.ones_like(ids))["embeds"]
    assert_close(student(**batch).text_embeds, wanted, atol=1e-6, rtol=0)
    video = torch.zeros(20, 3, 40, 40, dtype=torch.uint8)
    assert student.encode_video([video], progress=False).shape == (1, 32)
    assert student.encode_text("a red circle", progress=False).shape == (1, 32)


def test_other_models_and_encoders_without_weights_are_no_student(tmp_path: Path) -> None:
    folder = zero_shot_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    assert "has a configuration but no weights" in error_of(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert "model type 'bert' cannot be loaded as a student; known: teachclip, clip, " in error_of(folder)


def test_a_damaged_configuration_file_is_named(tmp_path: Path) -> None:
    tiny_student().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "not a valid JSON file" in error_of(tmp_path)


@pytest.mark.parametrize("source", ["/no/such/folder", "best_model.bin", "./student"])
def test_a_path_that_does_not_exist_is_named(source: str) -> None:
    assert "no such folder or checkpoint file" in error_of(source)


def test_an_unknown_hub_id_is_named() -> None:
    assert "nobody/nothing: cannot be loaded as a student" in error_of("nobody/nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temporal_layer": 3}, "temporal_layer is unknown; known: .*did you mean temporal_layers"),
        ({"temporal_layers": -1}, "temporal_layers is -1, expected an integer of at least 0"),
        ({"temporal_layers": True}, "temporal_layers is True"),
        ({"temporal_heads": 7}, "temporal_heads 7 does not divide the width 512"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"pooling_temperature": 0}, "pooling_temperature is 0"),
        ({"mask_padding": "no"}, "mask_padding is 'no'"),
    ],
)
def test_a_wrong_configuration_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        StudentConfig(**options)  # type: ignore[arg-type]


def test_the_official_layout_refuses_what_it_cannot_express() -> None:
    with pytest.raises(CheckpointError, match="text encoder has 2 heads, not 1; vision encoder has 2 heads, not 1"):
        student_to_official(tiny_student(heads=2))
    batch = tiny_batch()
    student = tiny_student(heads=1)
    again = load_student(student_to_official(student))
    assert_close(again(**batch).logits_per_text, student(**batch).logits_per_text)
