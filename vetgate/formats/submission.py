"""`submission.yaml`: what a supplier says about the model handed in. Nothing here is believed, all of it is checked."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator, model_validator

from vetgate.architectures import ARCHITECTURES
from vetgate.errors import BadSubmission, NotUnderstood
from vetgate.formats.manifest import FILE_NAME, open_plain
from vetgate.formats.model_name import MODEL_NAME, RULE
from vetgate.formats.plain_text import escaped, steering, steering_line
from vetgate.formats.readers import formats
from vetgate.formats.yaml12 import dump_plain, load_plain

FILE = "submission.yaml"
MAX_SIZE = 128 * 1024
# what the reading of a file may change in its description: how it is read, and never what it is said to be
REWRITTEN = ("model", "format", "layer", "architecture", "normalization", "layout", "color", "output")

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Channels = Annotated[int, Field(strict=True, ge=1, le=16)]
Side = Annotated[int, Field(strict=True, ge=1, le=1024)]
ManifestDigest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e4, le=1e4)]
Positive = Annotated[float, Field(allow_inf_nan=False, ge=1e-4, le=1e4)]
Count = Annotated[int, Field(strict=True, ge=2, le=100_000)]


class Normalization(BaseModel, frozen=True, extra="forbid"):
    """What the model expects of pixels in [0, 1]: (x - mean) / std, one number a channel, in the model's order."""

    mean: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=16)]
    std: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=16)]


class Submission(BaseModel, frozen=True, extra="forbid"):
    """The contents of `submission.yaml`.

    `parent` is the manifest of the submission that this one repairs, `submitted` that of the files that were handed in,
    in whose place vetgate wrote these; both stand in what vetgate writes, and are believed only where it signed so.
    There `match_weights_by` says how the tensors of that file were matched.
    """

    name: Name
    supplier: Label
    task: Literal["image-classification"]
    model: str
    format: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
    input_shape: tuple[Channels, Side, Side]
    classes: Count | Annotated[list[Label], Field(min_length=2, max_length=100_000)]
    reference_data: Name | None = None
    architecture: str | None = None
    match_weights_by: Literal["name", "order"] | None = None
    layer: Label | None = None
    normalization: Normalization | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    color: Literal["RGB", "BGR"] | None = None
    output: Label | None = None
    training_data: Name | None = None
    parent: ManifestDigest | None = None
    submitted: ManifestDigest | None = None

    @property
    def n_classes(self) -> int:
        """K, whether the classes were counted or named."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the K classes, their numbers where they were counted."""
        return tuple(map(str, range(self.classes) if isinstance(self.classes, int) else self.classes))

    @property
    def loaded_into(self) -> str | None:
        """The architecture that the weights are loaded into; None where the file itself holds the network."""
        known = formats().get(self.format)
        return self.architecture if known is not None and known.needs_architecture else None

    @property
    def compared_as(self) -> str | None:
        """The architecture whose clean models it is compared with: of a graph, the one that vetgate wrote down."""
        known, name = formats().get(self.format), self.architecture
        written = known is not None and name is not None and known.takes_architecture(name)
        return name if written else self.loaded_into

    @field_validator("model")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if FILE_NAME.fullmatch(value) is None or value.casefold() == FILE:
            raise ValueError("must be the plain name of a file beside submission.yaml, without a path")
        return value

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: int | list[str]) -> int | list[str]:
        names = [name.strip() for name in value] if isinstance(value, list) else []
        if not all(names):
            raise ValueError("must name every class, and no name is empty")
        if len(set(names)) != len(names):
            raise ValueError("must name each class once")
        return value

    @model_validator(mode="after")
    def _one_number_a_channel(self) -> Submission:
        channels = self.input_shape[0]
        for given in (self.normalization.mean, self.normalization.std) if self.normalization else ():
            if len(given) != channels:
                raise ValueError(
                    f"normalization must have one number for each of {channels} channels, got {len(given)}"
                )
        if self.color == "BGR" and channels != 3:
            raise ValueError(f"color BGR needs three channels, input_shape has {channels}")
        return self

    @model_validator(mode="after")
    def _known_architecture(self) -> Submission:
        known = formats().get(self.format)
        by_name = f"one of {', '.join(ARCHITECTURES)}"
        ours = self.architecture is None or self.architecture in ARCHITECTURES
        if not ours and (known is None or not known.takes_architecture(str(self.architecture))):
            raise ValueError(f"architecture must be {by_name}, got {reprlib.repr(self.architecture)}")
        if known is not None and known.needs_architecture and self.architecture is None:
            raise ValueError(f"format {self.format} needs an architecture, {by_name}")
        by_order = self.match_weights_by == "order" and self.submitted is None
        if by_order and (known is None or not known.keeps_order):
            raise ValueError(f"match_weights_by order is for state dicts, format {self.format} has no order of tensors")
        plain = (self.normalization, self.output) == (None, None) and self.layout != "NHWC" and self.color != "BGR"
        if self.loaded_into in ARCHITECTURES and not plain:
            raise ValueError(
                f"{self.architecture} takes pixels in [0, 1] as (N, C, H, W): normalization, layout, color and output "
                "are for other networks"
            )
        return self


def read_submission(directory: Path, *, given: Path | None = None) -> Submission:
    """Read and check `submission.yaml` in `directory`; raises BadSubmission, which names the one that was `given`."""
    return parse_submission(read_description(directory, given=given))


def parse_submission(text: str) -> Submission:
    """Check the text of a `submission.yaml`; raises BadSubmission."""
    # people read comments too; a mark of the encoding and line ends of Windows are no text
    if (found := steering_line(text.removeprefix("\ufeff").replace("\r\n", "\n"))) is not None:
        raise BadSubmission(f"{FILE}: expected plain text in line {found[0]}, got the control {found[1]}; remove it")
    try:
        fields = load_plain(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = escaped(" ".join(str(error).split()))[:300]
        raise BadSubmission(f"{FILE}: expected plain YAML 1.2, got something else: {line}") from error
    if not isinstance(fields, dict):
        raise BadSubmission(f"{FILE}: expected a mapping of fields, got {type(fields).__name__}; see the README")
    _check_text(fields)
    try:
        submission = Submission.model_validate(fields)
    except ValidationError as error:
        raise BadSubmission(f"{FILE}: " + "; ".join(_complaints(error))) from None
    if not MODEL_NAME.fullmatch(submission.name):
        raise BadSubmission(f"{FILE}: expected as name {RULE}; got {submission.name!r}")
    return submission


def dump_submission(submission: Submission) -> str:
    """The text of a `submission.yaml` that reads back as `submission`."""
    fields = {k: v for k, v in submission.model_dump(mode="json").items() if v is not None or k == "reference_data"}
    return dump_plain(fields)


def rewritten(submission: Submission, changes: Mapping[str, Any], manifest: str) -> Submission:
    """The description of what was written in place of the submission with this manifest.

    Raises NotUnderstood for changes of anything that says what the model is.
    """
    if not set(changes) <= set(REWRITTEN):
        raise NotUnderstood(f"expected only {', '.join(REWRITTEN)} to be written anew, got {sorted(changes)}")
    fields = submission.model_dump(mode="json") | dict(changes) | {"submitted": manifest}
    return Submission.model_validate(fields)


def _check_text(fields: dict[str, Any]) -> None:
    """Refuse controls and whatever reorders or hides text where an escape in quotes, such as "\\e", stands for it."""
    for field, value in fields.items():
        for text in (field, *(value if isinstance(value, list) else [value])):
            if isinstance(text, str) and (found := steering(text)) is not None:
                raise BadSubmission(
                    f"{FILE}: expected plain text in {escaped(field)[:80]}, got the control {found}; remove it"
                )


def read_description(directory: Path, *, given: Path | None = None) -> str:
    """The text of `submission.yaml` in `directory`, unchecked; raises BadSubmission, which names the one `given`."""
    given = given or directory
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BadSubmission(f"expected a directory with a {FILE}, got {given} ({error.strerror})") from error
    try:
        with open_plain(FILE, folder) as opened, os.fdopen(os.dup(opened), "rb") as file:
            data = file.read(MAX_SIZE + 1)
    except NotUnderstood as error:
        raise BadSubmission(f"expected a {FILE} in {given}: {error}") from error
    finally:
        os.close(folder)
    if len(data) > MAX_SIZE:
        raise BadSubmission(f"{FILE}: expected at most {MAX_SIZE} bytes, got more; shorten it")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadSubmission(
            f"{FILE}: expected UTF-8 text, got byte {error.start} that is not; save it as UTF-8"
        ) from error


def _complaints(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors(include_url=False)[:8]:
        where = ".".join(str(part) for part in item["loc"]) or "fields"
        if item["type"] == "extra_forbidden":
            known = ", ".join(Submission.model_fields)
            lines.append(f"unknown field {reprlib.repr(where)}, expected only {known}; remove it")
        elif item["type"] == "missing":
            lines.append(f"the field {where!r} is missing; add it")
        else:
            given = "" if item["loc"] == () else f", got {reprlib.repr(item['input'])}"
            lines.append(f"{where}: {item['msg'].removeprefix('Value error, ')}{given}")
    return lines
