"""The part of a recipe that says which videos and captions, and what all parts of a recipe share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

PathValue = Annotated[Path, Field(strict=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of a recipe: unknown keys and wrong types are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Validation(Section):
    """Videos to select on where the data has no validation split: held out of training, or those of an own list."""

    videos: Count | None = Field(None, description="how many training videos are held out; or give share")
    share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of the training videos that is held out, 1 to 1,000 videos; 0.05 if nothing is given"
    )
    list: PathValue | None = Field(None, description="own list of validation videos, as the format has them")
    seed: Seed = Field(0, description="which are held out; the choice does not depend on the order of the files")

    @model_validator(mode="after")
    def _one_way(self) -> Validation:
        if sum(value is not None for value in (self.videos, self.share, self.list)) > 1:
            raise ValueError("give one of videos, share and list")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


class Data(Section):
    """Which videos and captions."""

    format: str | None = Field(
        None,
        description="msrvtt, msvd, vatex, didemo, activitynet, lsmdc; own data: csv, xlsx, jsonl, parquet, "
        "text_files, subtitles; or module:name of a reader; needed with annotations",
    )
    videos: PathValue = Field(description="folder with the video files, searched with its sub-folders")
    annotations: PathValue | None = Field(
        None,
        description="file with the captions, or the folder that holds the published files under their names; null: "
        "the videos have no captions",
    )
    texts: PathValue | None = Field(
        None, description="file with texts that are of no video, one per line, such as queries; teachers pair them"
    )
    uncaptioned: PathValue | None = Field(
        None, description="folder with more training videos, which have no captions; they may be in `videos` too"
    )
    train: PathValue | None = Field(None, description="own list of training videos (msrvtt: CSV of video_id)")
    test: PathValue | None = Field(None, description="own list of test videos (msrvtt: CSV of video_id,sentence)")
    validation: Validation | None = Field(
        Validation(),
        description="where the data has no validation split; null: none (default with select_on: test)",
    )
    select_on: Literal["validation", "test"] = Field(
        "validation", description="split that picks the checkpoint; test only to reproduce papers, stamped on reports"
    )
    max_missing: Share = Field(0.01, description="share of missing or unreadable videos that may be excluded")

    @model_validator(mode="before")
    @classmethod
    def _test_needs_no_validation(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("select_on") == "test" and "validation" not in values:
            return {**values, "validation": None}
        return values

    @model_validator(mode="after")
    def _captions_or_texts(self) -> Data:
        if (self.format is None) != (self.annotations is None):
            given, absent = ("annotations", "format") if self.format is None else ("format", "annotations")
            raise ValueError(f"{given} needs {absent}: they say where captions are")
        if self.annotations is None and self.texts is None:
            raise ValueError("give format and annotations (captions), texts (a file with a text per line), or both")
        if self.annotations is None and (self.train or self.test or (self.validation and self.validation.list)):
            raise ValueError("train, test and validation.list name captioned videos: they need annotations")
        return self
