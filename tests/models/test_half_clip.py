"""CLIP with linear weights in float16: what is converted, which types it computes in, and the recorded numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from golden import load_golden
from golden_models import golden_batch, golden_state
from tiny_models import tiny_batch, tiny_clip, tiny_student
from torch import nn
from torch.testing import assert_close
from transformers import CLIPModel

from teachclip.models.clip import frame_features, sentence_and_words, text_features
from teachclip.models.half_clip import Float32LayerNorm, use_float16_weights
from teachclip.models.layouts import transformers_to_openai
from teachclip.models.student import StudentModel, load_student, student_to_official
from teachers import load_teacher

INFO, ARRAYS = load_golden("12_fp16_info")


@pytest.fixture(scope="module")
def student() -> StudentModel:
    model = load_student(golden_state(load_golden("01_student")[0]), mask_padding=False)
    use_float16_weights(model.backbone)
    return model


def test_exactly_the_official_tensors_become_float16(student: StudentModel) -> None:
    found = transformers_to_openai(student.backbone.state_dict())
    half = {f"clip.{key}" for key, tensor in found.items() if tensor.dtype == torch.float16}
    assert half == set(INFO["student_fp16_keys"])
    rest = [tensor for name, tensor in student.state_dict().items() if not name.startswith("backbone.")]
    assert all(tensor.dtype == torch.float32 for tensor in rest)


def test_float16_encoders_give_the_recorded_numbers(student: StudentModel) -> None:
    with torch.no_grad():
        out = student(**golden_batch(load_golden("01_student")[0], "full"))
    assert_close(out.logits_per_text, torch.from_numpy(ARRAYS["student_logits"]), atol=2e-2, rtol=0)
    assert_close(out.frame_weights, torch.from_numpy(ARRAYS["student_frame_weight"]), atol=2e-3, rtol=0)


def test_a_teacher_in_float16_gives_the_recorded_numbers() -> None:
    info, _ = load_golden("02_xclip")
    teacher = load_teacher("xclip", golden_state(info), mask_padding=False)
    use_float16_weights(teacher.clip)
    found = transformers_to_openai(teacher.clip.state_dict())
    assert {f"clip.{key}" for key in found if found[key].dtype == torch.float16} == set(INFO["student_fp16_keys"])
    batch = golden_batch(load_golden("01_student")[0], "full")  # both were recorded on this batch
    with torch.no_grad():
        texts = teacher.encode_texts(batch["input_ids"], batch["attention_mask"])
        videos = teacher.encode_videos(batch["pixel_values"], batch["frame_mask"])
        logits, relevance = teacher.score(texts, videos), teacher.frame_relevance(texts, videos)
    assert_close(logits, torch.from_numpy(ARRAYS["xclip_logits"]), atol=2e-2, rtol=0)
    assert_close(relevance, torch.from_numpy(ARRAYS["xclip_relevance"]), atol=2e-4, rtol=0)


def test_the_official_layout_is_written_in_float32_and_read_back(student: StudentModel) -> None:
    written = student_to_official(student)
    assert all(tensor.dtype == torch.float32 for tensor in written.values())
    again = student_to_official(load_student(written, mask_padding=False))
    assert all(torch.equal(again[key], tensor) for key, tensor in written.items())


def seen_types(clip: CLIPModel, call: Callable[[], object]) -> dict[str, tuple[torch.dtype, torch.dtype]]:
    """Types that enter and leave every norm, linear map and convolution."""
    seen: dict[str, tuple[torch.dtype, torch.dtype]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen[name] = inputs[0].dtype, output.dtype

        return note

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in clip.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm)
    ]
    call()
    for hook in hooks:
        hook.remove()
    return seen


def test_activations_are_float16_between_the_embeddings_and_the_features() -> None:
    clip = tiny_clip()
    use_float16_weights(clip)
    batch = tiny_batch()
    found = {}
    found |= seen_types(clip, lambda: sentence_and_words(clip, batch["input_ids"]))
    found |= seen_types(clip, lambda: frame_features(clip, batch["pixel_values"]))
    for projection in ("text_projection", "visual_projection"):
        assert found.pop(projection) == (torch.float16, torch.float32)
    assert len(found) == 2 * 2 * 8 + 4  # layers of both encoders, a norm after each, the patches and their norm
    assert set(found.values()) == {(torch.float16, torch.float16)}


def test_norms_compute_in_float32() -> None:
    # Squares of such values exceed what float16 holds.
    norm = Float32LayerNorm(8)
    hidden = torch.linspace(-600, 600, 8).half()
    normed = norm(hidden)
    assert normed.dtype == torch.float16
    assert_close(normed.float(), nn.functional.layer_norm(hidden.float(), (8,)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_reach_every_weight_in_its_own_type(attention: str) -> None:
    student = tiny_student()
    student.backbone.set_attn_implementation(attention)
    reference = copy.deepcopy(student)
    use_float16_weights(student.backbone)
    for model in (student, reference):
        out = model(**tiny_batch())
        nn.functional.cross_entropy(out.logits_per_text, torch.arange(3)).backward()
    exact = dict(reference.named_parameters())
    largest = max(parameter.grad.norm() for parameter in exact.values())
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == parameter.dtype, name
        wanted = exact[name].grad
        # Some, such as those of key biases, are zero but for rounding.
        assert (parameter.grad.float() - wanted).norm() < 0.02 * wanted.norm() + 1e-3 * largest, name


def test_parameters_stay_the_same_objects_in_the_same_state() -> None:
    clip = tiny_clip()
    before = dict(clip.named_parameters())
    before["vision_model.embeddings.patch_embedding.weight"].requires_grad_(False)
    use_float16_weights(clip)
    after = dict(clip.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items())
    assert not after["vision_model.embeddings.patch_embedding.weight"].requires_grad
    assert not any(module.training for module in clip.modules())


def test_float_undoes_the_conversion() -> None:
    clip = tiny_clip()
    use_float16_weights(clip)
    plain = tiny_clip()
    plain.load_state_dict({name: tensor.float() for name, tensor in clip.state_dict().items()})
    ids = tiny_batch()["input_ids"]
    with torch.no_grad():
        assert not torch.equal(text_features(clip, ids), text_features(plain, ids))
        clip.float()
        assert torch.equal(text_features(clip, ids), text_features(plain, ids))


def test_a_copy_is_independent_of_its_original() -> None:
    clip = tiny_clip()
    use_float16_weights(clip)
    other = copy.deepcopy(clip).float()
    ids = tiny_batch()["input_ids"]
    assert text_features(other, ids).dtype == text_features(clip, ids).dtype == torch.float32
    assert clip.text_projection.weight.dtype == torch.float16
