"""Texts that a vision-language model writes about frames of videos, by transformers' image-text-to-text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import explained_loading
from teachclip.models.hub import require_reachable
from teachclip.pipeline.workspace import Workspace
from teachclip.store.files import make_folder
from teachclip.store.fingerprint import fingerprint_of

PROMPT = "Describe what is seen in one short sentence."
FRAMES = 2
"""Frames of a video that are described, evenly spread over those that the student reads."""
MAX_NEW_TOKENS, MAX_WORDS = 40, 30

Captioner = Callable[[Image.Image], str]
"""Writes one text about a picture."""


def open_captioner(source: str, device: torch.device | str, *, prompt: str = PROMPT) -> Captioner:
    """Return what writes texts with a model of transformers' pipeline `image-text-to-text`, always the likeliest.

    `source`: a folder or hub id; no Python code of it is run. A model with a chat template is asked by `prompt`;
    another gets the picture alone. Raises CheckpointError for a model that cannot be loaded.
    """
    from transformers import pipeline

    require_reachable(source)
    with explained_loading(source, "a model that writes texts about pictures"):
        pipe: Any = pipeline("image-text-to-text", model=source, device=device, trust_remote_code=False)
    options = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
    asked = getattr(pipe.processor, "chat_template", None)

    def write(picture: Image.Image) -> str:
        if asked:
            content = [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]
            messages = [{"role": "user", "content": content}]
            found = pipe(text=messages, return_full_text=False, generate_kwargs=options)
        else:
            found = pipe(images=picture, text="", generate_kwargs=options)
        return str(found[0]["generated_text"])

    return write


def written_texts(work: Workspace, source: str, open_it: Callable[..., Captioner] = open_captioner) -> list[str]:
    """Return what a model writes about frames of the training videos, each text once.

    What was written is kept in the stores, by model and video, and not written again; an interrupted call goes on.
    Raises CheckpointError as `open_captioner`, or if the model wrote nothing that can be a text.
    """
    videos = work.catalog.train.videos
    rows = work.frames.rows_of([video.id for video in videos])
    keys = [fingerprint_of({"video": video.id, "size": video.path.stat().st_size}) for video in videos]
    path = work.recipe.stores / f"captions-{fingerprint_of({'model': source, 'prompt': PROMPT})[:12]}.jsonl"
    known = dict(_read(path))
    missing = [number for number, key in enumerate(keys) if key not in known]
    if missing:
        write = open_it(source, work.device)
        make_folder(path.parent)
        cut = path.exists() and not path.read_bytes().endswith(b"\n")
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n" if cut else "")  # what follows a line that was cut short stands on its own
            for number in tqdm(missing, desc="write captions", unit="video"):
                texts = [text_of(write(picture)) for picture in _pictures(work, int(rows[number]))]
                known[keys[number]] = [text for text in texts if text]
                file.write(json.dumps({"key": keys[number], "texts": known[keys[number]]}) + "\n")
                file.flush()
    found = list(dict.fromkeys(text for key in keys for text in known[key]))
    if not found:
        raise CheckpointError(f"{source}: it wrote nothing about {len(videos)} videos that can be a text")
    return found


def text_of(answer: str) -> str:
    """Return the first sentence of an answer, at most `MAX_WORDS` words, in one line; "" if it has no words."""
    line = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    sentence = re.split(r"(?<=[.!?])\s", line, maxsplit=1)[0].rstrip(".!? ")
    words = "".join(letter for letter in sentence if letter.isprintable() and letter != "\ufffd").split()
    return " ".join(words[:MAX_WORDS]) if any(re.search(r"[^\W\d_]{2,}", word) for word in words) else ""


def _pictures(work: Workspace, row: int) -> Sequence[Image.Image]:
    """Return some of the frames that the student reads of a video."""
    frames, mask = work.frames.read(np.array([row]))
    real = frames[0][mask[0]].permute(0, 2, 3, 1).numpy()
    places = np.unique(((np.arange(FRAMES) + 0.5) * len(real) / FRAMES).astype(int))
    return [Image.fromarray(np.ascontiguousarray(real[place])) for place in places]


def _read(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield what was written before; a line that was cut short is dropped."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
            yield str(values["key"]), [str(text) for text in values["texts"]]
        except (ValueError, KeyError, TypeError):
            continue
