"""Tiny random models of Sentence Transformers: a vision-language embedder and reranker, and a reranker of videos."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from tiny_models import SIZE
from tokenizers import pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from teachclip.scorer import Tokens
from teachers.cross_encoder import CrossEncoder

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<image>{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<|vision_start|>", "<|vision_end|>")
"""The tokens that are no bytes."""


def byte_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of bytes with the special tokens of chats."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=list(SPECIAL[1:]))


def save_llava(folder: Path) -> Path:
    """Save a random LLaVA of 32 pixels with its processor: texts, pictures and chats, without torchvision."""
    tokenizer = byte_tokenizer()
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    layers: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**layers, num_attention_heads=2, image_size=SIZE, patch_size=16),
            text_config=Qwen2Config(
                **layers, vocab_size=len(tokenizer), num_attention_heads=2, num_key_value_heads=1
            ),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
            image_seq_length=4,
        )
    )
    with torch.no_grad():  # spread out, so that scores differ
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def save_embedder(folder: Path, llava: Path) -> Path:
    """Save a random embedder of texts and pictures, with prompts, as Sentence Transformers does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    base = Transformer(str(llava), transformer_task="feature-extraction")
    modules = [base, Pooling(32, "lasttoken"), Normalize()]
    prompts = {"query": "Find what is described.", "document": "", "short": "Find."}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder))
    return folder


def save_reranker(folder: Path, llava: Path) -> Path:
    """Save a random reranker of texts and pictures, which compares two tokens of a language model's answer."""
    import sentence_transformers
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    base = Transformer(str(llava), transformer_task="any-to-any")
    sentence_transformers.CrossEncoder(modules=[base, LogitScore(5, 6)], device="cpu").save_pretrained(str(folder))
    return folder


def save_qwen3_vl(folder: Path) -> Path:
    """Save a random Qwen3-VL with what of its processor can be made without torchvision."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=8, merge_size=2).save_pretrained(folder)
    layers = {"hidden_size": 32, "intermediate_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 1}
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 1e4}
    vision = {"depth": 1, "num_heads": 2, "patch_size": 8, "out_hidden_size": 32, "num_position_embeddings": 16}
    config = Qwen3VLConfig(
        text_config={**layers, **heads, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config={**layers, **vision, "deepstack_visual_indexes": [0]},
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


VIDEO_RERANKER = '''"""A reranker of texts and videos: random matrices of bytes and of colours."""

import torch
from sentence_transformers.base.modules import InputModule


class ByteVideoScorer(InputModule):
    """Reads pairs of a text and a video, as arrays; shows what it was given in `seen`."""

    config_keys = ["seed"]
    modalities = ["text", "video", "message"]

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.seed, self.seen = seed, []
        self.words = torch.nn.Parameter(torch.randn(256, 8, generator=generator))
        self.colours = torch.nn.Parameter(torch.randn(12, 8, generator=generator))

    def preprocess(self, inputs, prompt=None, **options):
        self.seen.append((inputs, prompt, options))
        texts, videos = [], []
        for text, shown in inputs:
            text, video = text["text"], shown["video"]
            video = video["array"] if isinstance(video, dict) else video
            ids = torch.tensor(list(((prompt or "") + text).encode()))
            texts.append(torch.zeros(256).index_add(0, ids, torch.ones(len(ids))) / len(ids))
            moved = (video.float() / 255).mean((2, 3))
            videos.append(torch.cat([moved.mean(0), moved.amax(0), moved[0], moved[-1]]))
        return {"texts": torch.stack(texts), "videos": torch.stack(videos)}

    def forward(self, features, **options):
        left, right = features["texts"] @ self.words, features["videos"] @ self.colours
        features["scores"] = (left * right).sum(-1, keepdim=True)
        return features

    def save(self, output_path, *args, **kwargs):
        self.save_config(output_path)
        self.save_torch_weights(output_path)

    @classmethod
    def load(cls, model_name_or_path, subfolder="", **kwargs):
        hub = {key: kwargs[key] for key in ("token", "cache_folder", "revision", "local_files_only") if key in kwargs}
        model = cls(**cls.load_config(model_name_or_path, subfolder=subfolder, **hub))
        return cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=model, **hub)
'''


def save_video_reranker(folder: Path) -> Path:
    """Save a random reranker of texts and videos whose code is in its folder, and so needs `trust_remote_code`."""
    return _save_with_code(folder, VIDEO_RERANKER, "ByteVideoScorer", "CrossEncoder", {"find": "Find: "})


def _save_with_code(folder: Path, code: str, name: str, kind: str, prompts: dict[str, str]) -> Path:
    """Save a module with its own code, the class `name`, as a model of that kind."""
    folder.mkdir(parents=True)
    module = f"tiny_{name.lower()}"
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    names: dict[str, Any] = {}
    exec(code, names)
    names[name]().save(str(folder))
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{module}.{name}"}]
    settings = {"model_type": kind, "prompts": prompts}
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


VIDEO_ENCODER = '''"""An encoder of texts, pictures and videos: their bytes and colours times random matrices."""

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule


class ColourEncoder(InputModule):
    """A picture is its mean colour, a video those of its first and last frame together."""

    modalities = ["text", "image", "video"]

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = torch.nn.Parameter(torch.randn(256, 8, generator=generator))
        self.colours = torch.nn.Parameter(torch.randn(3, 8, generator=generator))

    def preprocess(self, inputs, prompt=None, **options):
        return {"vectors": torch.stack([self.vector(item) for item in inputs])}

    def vector(self, item):
        if isinstance(item, dict) and "text" in item:
            return self.words[list(item["text"].encode())].mean(0)
        if isinstance(item, dict):
            return (item["video"][[0, -1]].float() / 255).mean((0, 2, 3)) @ self.colours
        return torch.tensor(np.asarray(item)).float().div(255).mean((0, 1)) @ self.colours

    def forward(self, features, **options):
        return {"sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self):
        return 8

    def save(self, output_path, *args, **kwargs):
        self.save_torch_weights(output_path)

    @classmethod
    def load(cls, model_name_or_path, subfolder="", **kwargs):
        return cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=cls())
'''


def save_colour_encoder(folder: Path) -> Path:
    """Save an encoder of texts, pictures and videos whose code is in its folder."""
    return _save_with_code(folder, VIDEO_ENCODER, "ColourEncoder", "SentenceTransformer", {})


class DensePairs(CrossEncoder):
    """A CrossEncoder that scores all pairs, of texts up to 200 bytes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.shortlist = None  # type: ignore[assignment]

    def encode_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Tokens:
        """Give all texts one length, as tokens that are stored have one shape."""
        padding = (0, 200 - input_ids.shape[1])
        return {
            name: torch.nn.functional.pad(tensor, padding)
            for name, tensor in super().encode_texts(input_ids, attention_mask).items()
        }


logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
