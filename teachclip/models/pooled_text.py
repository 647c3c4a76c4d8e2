"""A text encoder of transformers that pools its last hidden states: for models without a pooled output of their own.

transformers' VisionTextDualEncoderModel reads a text model's `pooler_output`. DistilBERT has none, and the embedding
models of Sentence Transformers (MiniLM, E5, ...) were trained with the mean over the tokens instead of BERT's pooler.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import cached_file

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import first_line
from teachclip.registry import closest
from teachclip.store.files import read_json

POOLINGS = ("mean", "cls", "max")
"""Over the tokens of a text without padding: their mean, the first one, the highest value of each dimension."""

_MODES = {"pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean"}
"""Keys of older folders of Sentence Transformers; newer ones have `pooling_mode`."""


class PooledTextConfig(PreTrainedConfig):
    """Which text encoder, and how it is pooled.

    encoder: configuration of the text encoder, or its values as a dict.
    pooling: one of `POOLINGS`.

    Raises CheckpointError for another pooling or a configuration that no text encoder has.
    """

    model_type = "teachclip_text"
    sub_configs = {"encoder": AutoConfig}  # noqa: RUF012 (transformers reads it from the class)

    def __init__(
        self, encoder: PreTrainedConfig | dict[str, Any] | None = None, pooling: str = "mean", **kwargs: Any
    ) -> None:
        if pooling not in POOLINGS:
            raise CheckpointError(
                f"pooling is {pooling!r}; allowed: {', '.join(POOLINGS)}{closest(str(pooling), POOLINGS)}"
            )
        values = {"model_type": "bert"} if encoder is None else encoder
        if isinstance(values, dict):
            kind = values.get("model_type", "")
            if kind not in CONFIG_MAPPING:
                raise CheckpointError(f"text encoder: unknown model_type {kind!r}")
            values = CONFIG_MAPPING[kind](**{key: value for key, value in values.items() if key != "model_type"})
        self.encoder: Any = values
        self.pooling = pooling
        super().__init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of the pooled output."""
        return int(self.encoder.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        return int(self.encoder.vocab_size)

    @property
    def max_position_embeddings(self) -> int:
        """Rows of the position embedding."""
        return int(self.encoder.max_position_embeddings)


class PooledTextModel(PreTrainedModel):
    """A text encoder whose `pooler_output` is pooled from its last hidden states; its own pooler, if any, is gone."""

    config_class = PooledTextConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: PooledTextConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder)
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None  # unused weights would have no gradient
        self.post_init()

    @classmethod
    def of(cls, encoder: PreTrainedModel, pooling: str) -> PooledTextModel:
        """Return a loaded text encoder with another pooling; its weights are not copied."""
        model = cls(PooledTextConfig(encoder.config, pooling))
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        model.encoder = encoder
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.encoder.get_input_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the encoder starts its own weights."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode texts (texts, tokens); `attention_mask` None: no padding. `pooler_output` is (texts, width)."""
        options = {name: value for name, value in kwargs.items() if value is not None and name != "return_dict"}
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **options, return_dict=True)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=pool(output.last_hidden_state, attention_mask, self.config.pooling),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


def pool(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Pool token states (texts, tokens, width) to (texts, width); `mask` (texts, tokens) is 0 at padding."""
    if pooling == "cls":
        return states[:, 0]
    if mask is None:
        return states.mean(dim=1) if pooling == "mean" else states.amax(dim=1)
    keep = mask[:, :, None].to(states.dtype)
    if pooling == "mean":
        return (states * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1)
    return states.masked_fill(keep == 0, float("-inf")).amax(dim=1)


def pooling_of(source: str) -> str | None:
    """Return how a folder or hub id of Sentence Transformers pools; None for a model that is not of that library.

    Modules behind the pooling (`Dense`, `Normalize`) say nothing of it. Raises CheckpointError for another pooling
    than `POOLINGS`, several at once, and files that cannot be read.
    """
    modules = _read(source, "modules.json")
    if modules is None:
        return None
    try:
        kinds = {str(entry["type"]).rsplit(".", 1)[-1]: str(entry["path"]) for entry in modules}
        folder = kinds.get("Pooling")
        content = {} if folder is None else dict(_read(source, f"{folder}/config.json") or {})
    except (TypeError, LookupError, ValueError) as error:
        raise CheckpointError(f"{source}: modules.json is damaged: {first_line(error)}") from error
    if folder is None:
        return None
    mode = content.get("pooling_mode")
    old = [name for name, on in content.items() if name.startswith("pooling_mode_") and on is True]
    modes = [_MODES.get(name, name) for name in old] if mode is None else mode if isinstance(mode, list) else [mode]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        named = " and ".join(map(str, modes)) or "nothing"
        raise CheckpointError(
            f"{source}: {folder}/config.json pools by {named}; supported: one of {', '.join(POOLINGS)}; ask for one "
            "of them instead"
        )
    return str(modes[0])


def _read(source: str, name: str) -> Any:
    """Return the content of a JSON file of a folder or hub repository, None if there is none."""
    try:
        file = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        return None if file is None else read_json(Path(file))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: {name} cannot be read: {first_line(error)}") from error


AutoConfig.register(PooledTextConfig.model_type, PooledTextConfig, exist_ok=True)
AutoModel.register(PooledTextConfig, PooledTextModel, exist_ok=True)
