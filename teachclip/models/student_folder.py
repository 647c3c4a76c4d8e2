"""What a student's folder holds beside configuration, weights and processor, so that other libraries load it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.utils import cached_file

from teachclip import __version__

CODE_FILE = "teachclip_student.py"
"""The module that `auto_map` names. transformers runs it with `trust_remote_code=True`; without the package it says
which one is missing."""

_CODE = (
    "from teachclip.models.student import StudentConfig, StudentModel, StudentProcessor  # pip install teachclip\n"
)

AUTO_MAP = {"AutoConfig": "teachclip_student.StudentConfig", "AutoModel": "teachclip_student.StudentModel"}
PROCESSOR_AUTO_MAP = {"AutoProcessor": "teachclip_student.StudentProcessor"}
CARD_FILE = "README.md"

HUB_ARGUMENTS = ("revision", "subfolder", "cache_dir", "token", "local_files_only", "force_download", "proxies")
"""Arguments of transformers that say where in a hub repository, or a folder, files are."""

PUSH_ARGUMENTS = (
    *("repo_id", "private", "token", "revision", "create_pr"),
    *("commit_message", "commit_description"),
)

_METHOD = {"method_output_name": "pooler_output"}
SENTENCE_TRANSFORMERS: dict[str, Any] = {
    "modules.json": [
        {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": "sentence_transformers.base.modules.transformer.Transformer",
        },
        {
            "idx": 1,
            "name": "1",
            "path": "1_Normalize",
            "type": "sentence_transformers.base.modules.normalize.Normalize",
        },
    ],
    "sentence_bert_config.json": {
        "modality_config": {
            "text": {"method": "get_text_features", **_METHOD},
            "video": {"method": "get_video_features", **_METHOD},
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
        "requirements": {
            "teachclip": {
                "specifier": f">={__version__}",
                "reason": "It has the classes of this model: write `import teachclip` before loading it.",
            }
        },
    },
}
"""Files with which `SentenceTransformer(folder)` loads the student, after `import teachclip`."""


def write_code_file(folder: str | os.PathLike[str]) -> None:
    """Write the module that `AUTO_MAP` names."""
    Path(folder, CODE_FILE).write_text(_CODE, encoding="utf-8")


def write_client_files(folder: str | os.PathLike[str], *, card: str | None) -> None:
    """Write the files of Sentence Transformers, and the model card if there is one. Existing files are kept.

    Sentence Transformers writes its own, with a user's prompts but without requirements, before it saves the model.
    """
    settings = Path(folder, "config_sentence_transformers.json")
    if settings.exists():
        content = SENTENCE_TRANSFORMERS[settings.name] | json.loads(settings.read_text(encoding="utf-8"))
        settings.write_text(json.dumps(content, indent=2), encoding="utf-8")
    files = {name: json.dumps(content, indent=2) for name, content in SENTENCE_TRANSFORMERS.items()}
    for name, content in files.items() if card is None else [*files.items(), (CARD_FILE, card)]:
        path = Path(folder, name)
        if not path.exists():
            path.write_text(content, encoding="utf-8")


def read_card(source: str | os.PathLike[str], **hub: Any) -> str | None:
    """Return the model card beside a model in a folder or hub repository, or None if there is none.

    `hub`: where in a hub repository, as in transformers: `revision`, `subfolder`, `cache_dir`, `token`, ...
    """
    try:
        file = cached_file(
            str(source),
            CARD_FILE,
            **hub,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if file is None else Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError):  # a model loads without its card too
        return None


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> str:
    """Push the files of a folder to a repository of the hub; see `huggingface_hub`. Returns the commit's address."""
    hub = HfApi(token=token)
    repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        hub.create_branch(repo_id, branch=revision, exist_ok=True)
    done = hub.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message or "Upload student",
        commit_description=commit_description,
    )
    return str(done)
