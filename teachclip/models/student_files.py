"""Loading, saving and pushing a student with its processor and model card."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import COMPILED, check_finite, first_line
from teachclip.models.clip import check_loading_info, quiet_loading
from teachclip.models.processing import StudentProcessor, load_processor
from teachclip.models.student_folder import HUB_ARGUMENTS, PUSH_ARGUMENTS, push_folder, read_card, write_client_files


class StudentFiles(PreTrainedModel):
    """What `StudentModel` adds to loading and saving in transformers: its processor, its card, and strict checks."""

    processor: Any = None
    card: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        trust_remote_code: bool | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a saved student with its processor and model card, if they were saved with it.

        As in transformers, but missing, unexpected and differently shaped weights, and weights that are NaN or
        infinite, raise CheckpointError. `trust_remote_code`: run the Python code that the tokenizer brings, if any.
        """
        source = "student" if pretrained_model_name_or_path is None else str(pretrained_model_name_or_path)
        try:
            with quiet_loading():
                model, info = super().from_pretrained(
                    pretrained_model_name_or_path,
                    *args,
                    **{**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True},
                    key_mapping={re.escape(COMPILED): ""},
                )
        except CheckpointError as error:  # of the configuration, which knows no folder
            raise CheckpointError(str(error) if source in str(error) else f"{source}: {error}") from error
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{source}: cannot be loaded as a student: {first_line(error)}") from error
        check_loading_info(info, source=source)
        check_finite(model.state_dict(), source=source)
        if pretrained_model_name_or_path is not None:
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
            model.processor = load_processor(source, trust_remote_code=bool(trust_remote_code), **hub)
            model.card = read_card(source, **hub)
        return (model, info) if output_loading_info else model

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: transformers would copy this module into saved folders, which name the package instead."""

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save all that other libraries load a student from into a folder.

        Configuration, weights (safetensors), the processor and the model card, if there are any, and the files of
        Sentence Transformers. `push_to_hub`: as in transformers; then `repo_id` and what `push_to_hub` takes.
        """
        pushed = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            if isinstance(self.processor, StudentProcessor):
                self.processor.save_pretrained(save_directory)
            write_client_files(save_directory, card=self.card)
            if push_to_hub:
                self.push_to_hub(pushed.pop("repo_id", Path(save_directory).name), **pushed)

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str = "50GB", **kwargs: Any) -> str:
        """Push all that `save_pretrained` writes to a repository of the hub, which is made if it is not there.

        `kwargs`: `private`, `token`, `revision`, `create_pr`, `commit_message` and `commit_description`, as in
        transformers. Returns the address of the commit. A card of the repository is kept if the student has none.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return push_folder(folder, repo_id, **kwargs)
