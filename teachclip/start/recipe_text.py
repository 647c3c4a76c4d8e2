"""The recipe that `teachclip init` writes for videos without captions."""

from __future__ import annotations

from pathlib import Path

import yaml

from teachclip.start.look import Films
from teachclip.start.rules import Choice


def recipe_text(films: Films, choice: Choice, *, name: str, home: Path, texts: Path) -> str:
    """Return the recipe: fewer than 30 lines, with the tables of `recipes/RESULTS.md` that its choices rest on."""
    return f"""# {name}: {len(films.files)} videos without captions. By `teachclip init`; every line may be changed.
# Words in quotes are tables of recipes/RESULTS.md, which the choice rests on. All keys: teachclip keys
name: {quoted(name)}
output: {quoted(str(home / "run"))}
stores: {quoted(str(home / "stores"))}
data:
  videos: {quoted(str(films.folder))}
  texts: {quoted(str(texts))}   # one per line: put your own queries in; the teacher says which videos they fit
  validation: {{videos: {choice.held_out}}}   # held out, to measure how far the student agrees with its teacher
frames: {{sampling: intervals, count: 12}}   # 12 frames, evenly spread over each video
student:
  backbone: {quoted(choice.backbone)}
  temporal_layers: 0                # texts here do not tell the order of events ("Other presets")
  attention: sigmoid                # every frame is judged by itself ("What the options add": +6.0)
  pooling_temperature: 0.25
  adapters: [frame, pooled, text]   # "What the options add": +10.9 and +12.2
teachers:   # the larger model teaches, or the only one by its closest frame ("Without captions")
  - {{name: dual_encoder, checkpoint: {quoted(choice.teacher)}, options: {{pooling: {choice.pooling}}}}}
losses:
  contrastive: {{weight: 0.0}}        # there are no captions to tell apart
  video_text: {{weight: 0.0}}        # "Without captions": 58.3 R@1 without it, 22.7 with it
  frame_text:                        # +3.8, +2.5, and what sharpens a dual encoder's relevance: +8.6
    {{weight: 1.0, kind: binary_cross_entropy, targets: video, saturation: 0.25, spread: 0.25}}
  frame_sets: {{weight: 1.0, count: 512, texts: 512, frames: [1, 3], repeats: 3}}   # +13.8
optimizer: {{name: adamw, lr: 3e-5, attention_lr: 3e-3, adapter_lr: 2e-3, weight_decay: 0.05, schedule: warmup_cosine,
            max_grad_norm: 10.0}}
# Frozen encoders are fast; finetuned ones can be better where the head trains first ("Ways to finetune").
train: {{encoders: frozen, steps: {choice.steps}, batch_size: {choice.batch_size}, evaluate_every: {choice.steps}}}
"""


def quoted(text: str) -> str:
    """Return text as a YAML value, quoted where it must be; `$` in a path is not a variable."""
    return yaml.safe_dump(text, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
