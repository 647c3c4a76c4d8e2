"""Load and save a student with its processor, whole or not at all."""

from __future__ import annotations

import os
from typing import Any

from safetensors import SafetensorError

from teachclip.errors import CheckpointError
from teachclip.models.clip import check_loading_info, first_line, quiet_loading
from teachclip.models.processing import StudentProcessor, load_processor


class SavingMixin:
    """`from_pretrained` and `save_pretrained` of a student, stricter than transformers' own, which they call."""

    processor: Any

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a saved student and, if one was saved beside it, its processor.

        As in transformers, but weights that are missing, unexpected or of another shape raise CheckpointError.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        source = "student" if pretrained_model_name_or_path is None else str(pretrained_model_name_or_path)
        try:
            with quiet_loading():
                model, info = super().from_pretrained(  # type: ignore[misc]
                    pretrained_model_name_or_path,
                    *args,
                    **{**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True},
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{source}: cannot be loaded as a student: {first_line(error)}") from error
        check_loading_info(info, source=source)
        if pretrained_model_name_or_path is not None:
            model.processor = load_processor(pretrained_model_name_or_path)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save configuration, weights (safetensors) and the processor, if there is one, into a folder."""
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        if isinstance(self.processor, StudentProcessor) and kwargs.get("is_main_process", True):
            self.processor.save_pretrained(save_directory)
