"""The formats a model may be handed in: one file each, named like the format, that holds `FORMAT = Format(...)`.

What needs torch or onnx is imported inside the functions of a format, so that anything may ask which formats there are.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from vetgate.errors import NotUnderstood

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vetgate.formats.submission import Submission


@dataclass(frozen=True, kw_only=True)
class Format:
    """One input format. Every function is given bytes that are unchecked, and runs in the sandbox.

    `accepts` says what to hand in. `sniff(data)`: whether a file begins like one of it. `belongs(name)`: whether a file
    beside the model, which is no text, may be a part of it. `inspect(members, submission)`: every byte of these files
    (the model's and those that belong to it, by name) understood, else NotUnderstood. `canonical(members, submission)`:
    the description and the model file that vetgate writes in their place, in a format that has a `form`; what it wrote
    itself comes back as it is, byte for byte, and a layer that is named gets the name that it has there.
    `mapped`: whether files are given as memoryviews of what lies on disk, so that only what is read takes memory.
    `takes_architecture(name)`: whether it knows an architecture that is none of ours. `keeps_order`: whether its
    tensors stand in the order of the network that they are of, so that they may be matched by it.
    `says(members, model)`: what the file `model` among them says of itself, as fields of `submission.yaml` that
    `vetgate init` fills in; NotUnderstood where it is not of this format.
    """

    accepts: str
    sniff: Callable[[Any], bool]
    inspect: Callable[[Mapping[str, Any], Any], None]
    canonical: Callable[[Mapping[str, Any], Any], tuple[Submission, bytes]]
    form: Form | None = None
    belongs: Callable[[str], bool] = lambda name: False
    says: Callable[[Mapping[str, Any], str], Mapping[str, Any]] = lambda members, model: {}
    mapped: bool = False
    needs_architecture: bool = False
    keeps_order: bool = False
    takes_architecture: Callable[[str], bool] = lambda name: False


@dataclass(frozen=True, kw_only=True)
class Form:
    """What is done with the one file of a format that vetgate writes itself.

    `load(data, submission)`: the network in eval mode, the name of the layer of the features, and whether a final
    softmax was stripped; NotUnderstood unless every byte is understood. `write(data, submission, tensors)`: the same
    model with other weights. `serve(data, submission)`, where files of the format are served by a runtime of their own:
    the network as that computes it from these very bytes, by which it is measured; raises DefenceError where it cannot.
    `hold(data, submission, members, described)`, where more is asked of a file that was just written than that it is
    written so again and can be loaded and tried: whether it is, and NotUnderstood unless it can, and unless the runtime
    computes what our reading does, from it and, where they are of the same format, from the `members` that were handed
    in as `described`.
    """

    load: Callable[[Any, Any], tuple[nn.Module, str, bool]]
    write: Callable[[Any, Any, Mapping[str, Tensor]], bytes]
    serve: Callable[[Any, Any], nn.Module] | None = None
    hold: Callable[[bytes, Any, Mapping[str, Any], Any], bool] | None = None


@cache
def formats() -> dict[str, Format]:
    """Every format by name."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").FORMAT for name in names}


def written_formats() -> tuple[str, ...]:
    """The names of those that vetgate writes."""
    return tuple(sorted((name for name, each in formats().items() if each.form is not None), reverse=True))


def accepted() -> str:
    """What may be handed in, in words."""
    return " or ".join(each.accepts for each in formats().values())


def format_of(submission: Submission) -> Format:
    """The format of a submission; raises NotUnderstood for one that is not known: nothing is read as something else."""
    if submission.format not in formats():
        raise NotUnderstood(
            f"expected format {' or '.join(formats())}, got {submission.format!r}, which is not accepted; "
            f"hand in {accepted()}"
        )
    return formats()[submission.format]


def form_of(submission: Submission) -> Form:
    """The form of a submission that vetgate wrote; raises NotUnderstood where its format is none that it writes."""
    form = format_of(submission).form
    if form is None:
        raise NotUnderstood(
            f"expected a model that vetgate wrote, got one in format {submission.format}; vet it as it was handed in"
        )
    return form
