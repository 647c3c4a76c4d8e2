"""The recipe: everything a run depends on, in one YAML file with a strict schema.

Only `build_*` functions read a `Recipe`; parts take numbers and modules. Relative paths are relative to the working
directory; `${NAME}` and `${NAME:-default}` are from the environment. `teachclip.recipe.loading` reads and checks.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from teachclip.recipe.data_section import Count, Data, PathValue, Positive, Section, Seed, Share, Weight
from teachclip.recipe.loss_section import Losses, check_losses


class Frames(Section):
    """Which frames of a video are read."""

    sampling: Literal["per_second", "intervals", "clip2video"] = Field(
        "per_second",
        description="per_second: frames of every second, then uniform (CLIP4Clip); intervals: X-Pool's; clip2video",
    )
    count: Count = Field(12, description="frames per video")
    rate: Count = Field(
        1, description="per_second: frames a second; clip2video: keep every N-th frame of a 5 fps stream"
    )
    keyframes: bool = Field(
        False, description="in place of each frame the nearest keyframe: faster to decode where frames are large"
    )
    decoded_size: Count | None = Field(
        None,
        description="pixels to which the decoder makes the short side of larger frames smaller: faster where frames "
        "are large, slightly other pixels; null: frames of full size are made smaller exactly as published",
    )
    size: Count | None = Field(None, description="pixels; null: as the student's backbone was trained")
    temporal_augmentation: Count = Field(
        1, description="versions of each training video, seen in turn: the plain sampling and randomly shifted ones"
    )
    augmentation_seed: Seed = Field(0, description="seed of the shifted versions")
    store: Literal["disk", "none"] = Field("disk", description="none: decode whenever frames are read; slower")
    on_error: Literal["skip", "use_decodable"] = Field("skip", description="what is taken of a damaged video")
    workers: int = Field(0, ge=0, description="decoding processes; 0: one per core")
    memory_limit: Positive = Field(4.0, description="GB; a decoding process that takes more is killed")
    time_limit: Positive = Field(60.0, description="seconds; a file that takes longer counts as unreadable")


class Text(Section):
    """How captions become tokens."""

    max_tokens: int = Field(32, ge=3, description="longer captions are cut; the end-of-text token stays")


TextPooling = Literal["pooler", "mean", "cls", "max"]
TEXT_POOLINGS: tuple[TextPooling, ...] = get_args(TextPooling)


class TextTeaching(Section):
    """How another text encoder learns to put texts where the backbone puts them."""

    texts: PathValue | None = Field(
        None,
        description="file of texts to learn from beside the training texts: one per line; or, with tabs and a header "
        "of languages, rows that mean the same, of which the backbone understands the first",
    )
    pooling: TextPooling | None = Field(
        None,
        description="of the tokens of a text; pooler: the model's own pooled output; null: as its Sentence "
        "Transformers files say, else pooler",
    )
    steps: Count = Field(2000, description="optimizer steps")
    batch_size: Count = Field(64, description="texts of a step")
    lr: Positive = Field(3e-4, description="highest learning rate")
    seed: Seed = Field(0, description="seed of its projection and its batches")


class Student(Section):
    """The compact model."""

    backbone: str = Field(
        description="dual encoder to start from (CLIP, SigLIP, SigLIP 2, MetaCLIP 2, ALIGN, AltCLIP, Chinese-CLIP): "
        "hub id, folder, or file of an official CLIP state dict; a folder or JSON file with a configuration alone "
        "starts from random weights"
    )
    text_backbone: str | None = Field(
        None,
        description="another text encoder for the backbone, smaller or of more languages: hub id or folder of a text "
        "model of transformers. It is taught once, on texts alone, to put them where the backbone does",
    )
    text_teaching: TextTeaching = TextTeaching()
    trust_remote_code: bool = Field(
        False, description="run the Python code that the backbone's tokenizer brings; false: it is refused"
    )
    vectors: Count = Field(
        1, description="vectors per video; a text is compared with the nearest one. 1: as published"
    )
    temporal_layers: int = Field(4, ge=0, description="blocks of the temporal transformer; 0: none")
    pooling_temperature: Positive = Field(0.1, description="temperature of the softmax that pools the frames")
    mask_padding: bool = Field(True, description="padded frames take no weight; false: as in the official code")
    attention: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="how frame scores become weights; sigmoid: every frame by itself, for several events"
    )
    attention_input: Literal["after", "before"] = Field(
        "after", description="whether the frame attention reads frames after the temporal transformer or before"
    )
    attention_rescale: bool = Field(False, description="RMS-normalise what frame attention reads")
    adapters: list[Literal["frame", "pooled", "text"]] = Field(
        default_factory=list, description="residual adapters; the text adapter runs once per query"
    )
    adapter_width: Count | None = Field(None, description="inner width of the adapters; null: 4 x the joint width")
    matryoshka: list[Count] = Field(
        default_factory=list,
        description="first numbers of an embedding that the losses train as embeddings too, such as [256, 128, 64]",
    )
    temperature_scaling: list[Positive] = Field(
        default_factory=list,
        description="factors on the trained attention scores, tried on the selection split; the best one is exported",
    )
    wise_ft: list[Share] = Field(
        default_factory=list,
        description="shares of the finetuned encoders in their mean with those they started from, tried on the "
        "selection split; the best one is exported (WiSE-FT)",
    )

    @model_validator(mode="after")
    def _teaching_of_one(self) -> Student:
        if self.text_backbone is None and self.text_teaching != TextTeaching():
            raise ValueError("text_teaching needs text_backbone, the text encoder that is taught")
        return self

    @field_validator("adapters", "matryoshka")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
            raise ValueError(f"{twice[0]} is duplicated")
        return values


class Optimizer(Section):
    """How parameters move. Each rate is the highest of its schedule."""

    name: Literal["bert_adam", "adamw"] = Field("bert_adam", description="bert_adam: as published; adamw: torch's")
    lr: Positive = Field(1e-4, description="rate of new parameters (temporal transformer, teacher head)")
    clip_lr: Weight = Field(
        1e-7,
        description="rate of the backbone where encoders are finetuned, 0 freezes it; of LoRA's matrices, which need "
        "about 1e-3 (at least 1e-5)",
    )
    attention_lr: Positive = Field(1e-3, description="rate of the frame attention (published: 10 x lr)")
    adapter_lr: Positive | None = Field(None, description="rate of the residual adapters; null: attention_lr")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="factor on clip_lr for each layer further from the encoders' outputs; 1: as published"
    )
    weight_decay: Weight = Field(0.2, description="decoupled; none for biases")
    l2_start: Weight = Field(
        0.0, description="pull of finetuned encoders towards their start, in place of weight decay (L2-SP); 0: none"
    )
    schedule: Literal["published", "warmup_cosine"] = Field(
        "published", description="published: cosine over the whole run; warmup_cosine: cosine after the warm-up"
    )
    warmup: Share = Field(0.1, description="share of the steps that the rate rises for")
    max_grad_norm: Positive = Field(1.0, description="the global gradient norm is clipped to this")


class Train(Section):
    """How long, in which batches, on what."""

    encoders: Literal["finetuned", "frozen", "lora"] = Field(
        "finetuned",
        description="frozen: CLIP's embeddings are stored once; lora: matrices of low rank beside their attention "
        "train, and are merged at the end",
    )
    lora_rank: Count = Field(8, description="with encoders=lora: rank of these matrices")
    frozen_steps: int = Field(
        0,
        ge=0,
        description="steps at first in which the encoders do not move (LP-FT); the schedule of their rate then takes "
        "the other steps",
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay of a running mean of the weights, such as 0.999, which is validated and exported in their "
        "place; null: none",
    )
    batch_size: Count = Field(120, description="pairs per step, over all processes together")
    epochs: Count | None = Field(None, description="passes over the training pairs; or give steps")
    steps: Count | None = Field(None, description="optimizer steps; or give epochs")
    captions_per_video: Count = Field(
        1, description="captions in a batch that share the encoding of their video; 1: as published"
    )
    chunk_size: Count | None = Field(
        None,
        description="pairs that a process encodes at a time: the same gradients in less memory, each pair encoded "
        "twice; null: all",
    )
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto",
        description="autocast of the forward pass; weights and losses stay float32. auto: bf16 where encoders train "
        "on a GPU that has it, else no",
    )
    clip_weights: Literal["float32", "float16"] = Field(
        "float32", description="float16: update CLIP's weights in float16, as published"
    )
    evaluate_every: Count | None = Field(None, description="steps between validations; null: once an epoch")
    checkpoint_every: Count | None = Field(None, description="steps between checkpoints; null: as evaluate_every")
    log_every: Count = Field(10, description="steps between progress lines and checks that the loss is finite")
    workers: int = Field(0, ge=0, description="processes that load batches; 0: a thread of the main process")
    compile: bool = Field(False, description="compile the encoders (torch.compile); the first steps are slow")
    activation_checkpointing: bool = Field(
        False, description="compute the encoders' activations again in the backward pass: slower, less memory"
    )
    tf32: bool = Field(False, description="TensorFloat-32 in products of float32 matrices, on GPUs that have it")
    trackers: list[str] = Field(default_factory=list, description="Accelerate trackers, such as tensorboard, wandb")

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self

    @model_validator(mode="after")
    def _whole_videos(self) -> Train:
        if self.batch_size % (together := self.captions_per_video):
            raise ValueError(f"batch_size is {self.batch_size}; allowed: a multiple of captions_per_video={together}")
        return self

    @model_validator(mode="after")
    def _frozen_steps_end(self) -> Train:
        if self.frozen_steps and self.encoders == "frozen":
            raise ValueError("frozen_steps is for encoders that move after them, not for encoders=frozen")
        if self.steps is not None and self.frozen_steps >= self.steps:
            raise ValueError(f"frozen_steps is {self.frozen_steps}; allowed: fewer than the {self.steps} steps")
        return self


LEAST_LORA_RATE = 1e-5
"""A hundredth of the usual rate of LoRA's matrices; rates of finetuned encoders, as 1e-7, move them nowhere."""


def _check_encoders(train: Train, optimizer: Optimizer, wise_ft: bool = False) -> None:
    """Raise ValueError for what does not fit to how the encoders train."""
    used = {"student.wise_ft": wise_ft and train.encoders == "frozen"}
    used |= {"optimizer.layer_decay": optimizer.layer_decay != 1 and train.encoders == "frozen"}
    for key in (key for key, is_wrong in used.items() if is_wrong):
        raise ValueError(f"{key} is for encoders that train, not for train.encoders=frozen")
    if train.encoders == "lora" and optimizer.clip_lr < LEAST_LORA_RATE:
        raise ValueError(
            f"optimizer.clip_lr is {optimizer.clip_lr:g}, at which LoRA's matrices, which start at 0, learn nothing; "
            f"allowed with train.encoders=lora: at least {LEAST_LORA_RATE:g}; usual: 1e-3"
        )
    if optimizer.l2_start and train.encoders != "finetuned":
        raise ValueError(f"optimizer.l2_start needs train.encoders=finetuned, got {train.encoders}")
    if (pull := optimizer.l2_start * optimizer.clip_lr) > 1:
        raise ValueError(
            f"optimizer.l2_start x optimizer.clip_lr is {pull:g}, the share of the way back to their start that "
            "encoders go in a step; allowed: at most 1"
        )
    if optimizer.l2_start and train.clip_weights == "float16":
        raise ValueError("optimizer.l2_start needs train.clip_weights=float32: its steps vanish in float16")


def _check_float16(train: Train, optimizer: Optimizer) -> None:
    for key, got, needed, why in (
        ("train.encoders", train.encoders, "finetuned", "frozen encoders do not move"),
        ("train.mixed_precision", train.mixed_precision, "no", "the encoders compute in float16 by themselves"),
        ("optimizer.name", optimizer.name, "bert_adam", "second moment and eps of adamw underflow in float16"),
    ):
        if train.clip_weights == "float16" and got not in (needed, "auto"):
            raise ValueError(f"train.clip_weights=float16 needs {key}={needed}, got {got} ({why})")


class TeacherTraining(Section):
    """How `tools/train_teacher.py` makes the teacher's checkpoint."""

    clip: str | None = Field(None, description="CLIP to start from; null: the student's backbone")
    annotations: PathValue | None = Field(
        None, description="what it is trained and selected on in place of data.annotations, such as more videos"
    )
    seed: Seed = Field(24, description="seed of batches and dropout")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the new teacher, such as dropout")
    optimizer: Optimizer = Optimizer()
    train: Train

    @model_validator(mode="after")
    def _consistent(self) -> TeacherTraining:
        if self.train.encoders == "lora":
            raise ValueError("train.encoders=lora is for students; allowed here: finetuned, frozen")
        _check_encoders(self.train, self.optimizer)
        _check_float16(self.train, self.optimizer)
        return self


class Teacher(Section):
    """One teacher and its checkpoint."""

    name: str = Field(description="xpool, scores, ..., an entry point of teachclip.teachers, or module:name")
    label: str = Field("", description="what stores, --teacher and --model call it; default: the name")
    checkpoint: str = Field(description="file in the layout its authors published; for some a folder or hub id")
    reads: str | None = Field(
        None,
        description="hub id or folder whose tokenizer and image settings it reads; null: its own or the student's",
    )
    weight: Positive = Field(1.0, description="share of this teacher in the mean over teachers")
    frame_temperature: Positive = Field(
        1.0, description="frame relevance q becomes q^(1/T) / sum: above 1 flatter, below sharper; 1: as published"
    )
    keep: Count | None = Field(
        None,
        description="of its stored relevance, only the best videos of each text, as a shortlist of this length would "
        "keep; null: all. To measure what a shortlist loses",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="options of load_teacher, such as mask_padding")
    training: TeacherTraining | None = Field(None, description="how to train it, where you have no checkpoint")

    @model_validator(mode="before")
    @classmethod
    def _label_is_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("label") and isinstance(values.get("name"), str):
            return {**values, "label": values["name"]}
        return values

    @property
    def folder(self) -> str:
        """The label as a part of a file name."""
        return re.sub(r"[^\w-]", "-", self.label)


class Teaching(Section):
    """Where the teachers' relevance comes from during training."""

    source: Literal["stored", "online"] = Field("stored", description="stored: precomputed; online: in every step")
    precision: Literal["float16", "float32"] = Field("float16", description="precision of the stored relevance")
    max_gb: Annotated[float, Field(ge=0)] = Field(
        100.0,
        description="gigabytes of stored relevance, all captions x all videos, above which a teacher's tokens are "
        "stored instead and scored in every step",
    )
    batch_size: Literal["auto"] | Count = Field(
        "auto", description="videos per forward pass while precomputing; auto: as many as fit into memory"
    )
    encoding_precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="what encoders compute in while precomputing; bfloat16: faster, other relevance"
    )
    only: list[str] | None = Field(
        None, min_length=1, description="labels of the teachers that teach; null: all that are listed"
    )
    weighting: Literal["fixed", "confidence"] = Field(
        "fixed",
        description="confidence: teachers are weighted per pair by weight times confidence",
    )

    @property
    def pairs_at_once(self) -> int:
        """Pairs per forward pass of a teacher that encodes a text and a video together: `batch_size`, 32 for auto."""
        return 32 if self.batch_size == "auto" else self.batch_size


class Evaluation(Section):
    """How models are evaluated: sizes change speed and memory only, the precision results too."""

    batch_size: Count = Field(32, description="videos per forward pass")
    text_block: Count = Field(128, description="captions scored at once")
    video_block: Count = Field(512, description="videos scored at once")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="what encoders compute in; bfloat16: faster, other recalls"
    )


class Card(Section):
    """What the model card of the exported student claims; nothing else is."""

    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] | None = Field(
        None, description="licence of the student by its name on the Hub, such as apache-2.0; null: none is claimed"
    )
    language: list[Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")]] = Field(
        default_factory=list, description="languages of the captions, such as en"
    )
    datasets: list[Annotated[str, Field(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)?$")]] = Field(
        default_factory=list, description="hub ids of the data sets that it was trained on"
    )


class Recipe(Section):
    """A whole experiment."""

    name: str = Field(description="name of the experiment")
    seed: Seed = Field(42, description="seed of the student's new parameters and of its batches")
    batch_seed: Seed | None = Field(
        None,
        description="seed of what is drawn in training (batches, dropout, frame sets, joined clips); null: seed. "
        "Students of one seed can be averaged (soup)",
    )
    output: PathValue = Field(description="run folder: resolved recipe, log, checkpoints, report, exported student")
    stores: PathValue = Field(description="folder of all that is computed once: frames, features, relevance")
    data: Data
    frames: Frames = Frames()
    text: Text = Text()
    student: Student
    teachers: list[Teacher] = Field(default_factory=list)
    teaching: Teaching = Teaching()
    losses: Losses = Losses()
    optimizer: Optimizer = Optimizer()
    train: Train
    evaluation: Evaluation = Evaluation()
    card: Card = Card()
    if_better_teacher: list[str] = Field(
        default_factory=list,
        description="key=value of student, losses and optimizer that hold in place of the recipe's own where a "
        "teacher finds more captions of the selection split than mean pooling of the backbone, by more than a "
        "standard error; measured before training",
    )
    if_late_interaction: list[str] = Field(
        default_factory=list,
        description="the same where the backbone's late interaction finds half as many captions again as mean "
        "pooling; of one key what stands here counts",
    )

    @property
    def order_seed(self) -> int:
        """The seed of what is drawn in training."""
        return self.seed if self.batch_seed is None else self.batch_seed

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        run = self.teaching.source == "online" and any(teacher.name != "scores" for teacher in self.teachers)
        if self.losses.frame_text.targets == "video" and run:
            raise ValueError("losses.frame_text.targets=video needs teaching.source=stored")
        if any(teacher.keep is not None for teacher in self.teachers):
            if self.teaching.source != "stored":
                raise ValueError("teachers.keep needs teaching.source=stored")
            if self.frames.temporal_augmentation > 1:
                raise ValueError("teachers.keep needs frames.temporal_augmentation=1")
        labels = [teacher.label for teacher in self.teachers]
        if len({teacher.folder.lower() for teacher in self.teachers}) != len(labels):
            raise ValueError(f"teachers: each label may stand once, got {', '.join(labels)}; give one a 'label'")
        if taken := {"student", "zero_shot"} & set(labels):
            raise ValueError(f"teachers: {taken.pop()!r} is the name of another model; give it another 'label'")
        if problems := list(check_losses(self)):
            raise ValueError("; ".join(problems))
        _check_encoders(self.train, self.optimizer, bool(self.student.wise_ft))
        _check_float16(self.train, self.optimizer)
        return self
