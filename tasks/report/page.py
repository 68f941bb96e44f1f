"""One self-contained HTML page for a vetting: no script, nothing loaded from elsewhere, every given string escaped.

The page holds what was decided and why, each method against its null, the reversed triggers as pictures, the model
before and after repair, and what all of it was computed from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from safetensors import safe_open

from tasks.report.candidates import tried
from tasks.report.figures import Bar, Histogram, Strip, bars, histogram, strip
from tasks.report.trigger_images import Picture, data_uri, most_suspicious, triggers_of
from tasks.report.words import guarded, meaning, name_of, summary
from tasks.vetting.results import RepairRecord, Result, ResultMethod
from vetgate.formats.plain_text import escaped_lines
from vetgate.packed import array_of
from vetgate.role import sentence_of, title_of
from vetgate.shape import Blob, to_json
from vetgate.verdict.stated import StatedMethod, StatedVerdict

MOST_TRIGGERS = 6
TEMPLATE = Path(__file__).parent / "page.html.j2"
# what a page of ours has none of after its policy: text of strangers is escaped
ACTIVE = re.compile(rb"<\s*/?\s*(meta|base|link|script|form|input|button|a|area|iframe|frame|object|embed)\b", re.I)


@dataclass(frozen=True)
class Shown:
    """A trigger as the page shows it: its pictures as data: addresses, by name."""

    target: int
    label: str
    norm: float
    share: float
    suspect: bool
    pictures: dict[str, str]


@dataclass(frozen=True)
class Row:
    """One method as the page shows it."""

    name: str
    title: str
    about: str
    statistic: float | None
    p_value: float | None
    counted: bool | None
    alarmed: bool
    suspects: list[str]
    seconds: float | None
    failure: str | None
    strip: Strip | None
    bars: list[Bar]
    bars_words: str
    histogram: Histogram | None
    flagged: int | None
    triggers: list[Shown]
    more_triggers: int
    details: dict[str, str]


@dataclass(frozen=True, eq=False)
class Clean:
    """Clean images (N, C, H, W) in [0, 1] and their labels (N,), to show triggers on."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]

    @classmethod
    def first_of(cls, split: Path, count: int = 64) -> Clean:
        """The first images of a split file, which are a fair sample of it."""
        with safe_open(split, "numpy") as file:
            return cls(file.get_slice("x")[:count], file.get_slice("y")[:count])

    def other_than(self, label: int) -> NDArray[np.float32] | None:
        """The first image of another class."""
        rows = np.flatnonzero(self.y != label)
        return self.x[rows[0]] if len(rows) else None


def render(
    result: Result,
    *,
    evidence: Sequence[Blob],
    verdict: StatedVerdict | None = None,
    repair: RepairRecord | None = None,
    submission: Blob | None = None,
    provenance: Blob | None = None,
    clean: Clean | None = None,
) -> str:
    """The page for a result.

    `evidence` holds Evidence.to_json() objects or the store's records of them; of `verdict` come the methods' p-values
    and nulls, and the calibration; `repair` is the one that was chosen; `provenance` is shown as it is.
    """
    names = _class_names(submission)
    records = [item if "evidence" in item else {"evidence": item} for item in evidence]
    by_method = {record["evidence"]["method"]: record for record in records}
    calibration = None if verdict is None else verdict.calibration
    judged = {method.name: method for method in (verdict.methods if verdict is not None else ())}
    rows = [
        _row(method, judged.get(method.name), by_method.get(method.name), result, names, clean)
        for method in result.methods
    ]
    page = {
        "result": result,
        "submission": submission or {},
        "summary": summary(result, names),
        "reasons": result.reasons,
        "suspects": [name_of(k, names) for k in result.suspects],
        "rows": rows,
        "by_class": _by_class(result, names),
        "repair": _repair(result, repair, names, clean),
        "tried": tried(result.repairs, names),
        "guards": _guards(result),
        "meaning": meaning(result, calibration),
        "provenance": [*_provenance(result, records, calibration, provenance)],
    }
    return environment().get_template(TEMPLATE.name).render(page)


def is_page(data: bytes) -> bool:
    """Whether bytes begin as every page does, with the policy that lets it load and run nothing, and hold no link."""
    source = TEMPLATE.read_bytes()
    begins = source.index(b"<!doctype")
    opening = source[begins : source.index(b"<title>", begins)]
    page = data.lstrip()
    return page.startswith(opening) and ACTIVE.search(page, len(opening)) is None


def number(value: Any, digits: int = 3) -> str:
    """A number for people, or a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def percent(value: Any) -> str:
    """A share as per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"


def environment() -> Environment:
    """What renders the templates of this folder: whatever is given is escaped, and undefined names are errors."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        finalize=_plain,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent}
    return environment


def _plain(value: Any) -> Any:
    """What a template shows of a value: a stranger's text without controls; markup is what a macro of ours made."""
    return escaped_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _by_class(result: Result, names: list[str]) -> list[tuple[str, Any]]:
    look = result.first_look
    return [] if look is None else [(name_of(label, names), share) for label, share in enumerate(look.by_class)]


def _class_names(submission: Blob | None) -> list[str]:
    classes = (submission or {}).get("classes")
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else []


def _row(
    method: ResultMethod,
    judged: StatedMethod | None,
    record: Blob | None,
    result: Result,
    names: Sequence[str],
    clean: Clean | None,
) -> Row:
    found = record["evidence"] if record else None
    suspects, failure = method.suspects, method.failure
    shown: list[Picture] = []
    figures: dict[str, Any] = {"bars": [], "bars_words": "", "histogram": None, "flagged": None}
    if found is not None:
        try:
            shown = triggers_of(found)
            figures = _figures(found, shown, suspects)
        except ValueError as error:
            failure = failure or f"evidence that cannot be shown: {error}"
    chosen = most_suspicious(shown, suspects or result.suspects, MOST_TRIGGERS)
    return Row(
        name=method.name,
        title=title_of(method.name),
        about=sentence_of(method.name),
        statistic=method.statistic,
        p_value=None if judged is None else judged.p_value,
        counted=method.counted,
        alarmed=method.alarmed,
        suspects=[name_of(k, names) for k in suspects],
        seconds=method.seconds,
        failure=failure,
        strip=strip(method.statistic, None if judged is None else judged.null),
        triggers=[_shown(picture, suspects, names, clean) for picture in chosen],
        more_triggers=len(shown) - len(chosen),
        details=_details(found),
        **figures,
    )


def _figures(found: Blob, triggers: Sequence[Picture], suspects: Sequence[int]) -> dict[str, Any]:
    scores = np.asarray(array_of(found["scores"]), np.float64).ravel()
    if found.get("axis") != "class":
        cutoff = found.get("cutoff")
        flagged = 0 if cutoff is None else int((scores >= cutoff).sum())
        return {"bars": [], "bars_words": "", "histogram": histogram(scores.tolist(), cutoff), "flagged": flagged}
    norms = {picture.target: picture.norm for picture in triggers}
    if set(norms) == set(range(len(scores))):
        values, words = norms, "Size of the smallest trigger found for each label, in pixels; one far below the rest"
        words += " is the sign of a backdoor."
    else:
        values, words = dict(enumerate(scores.tolist())), "Score of each label; higher is more suspicious."
    return {"bars": bars(values, suspects), "bars_words": words, "histogram": None, "flagged": None}


def _shown(picture: Picture, suspects: Sequence[int], names: Sequence[str], clean: Clean | None) -> Shown:
    image = None if clean is None else clean.other_than(picture.target)
    files = picture.pngs(image)
    return Shown(
        target=picture.target,
        label=name_of(picture.target, names),
        norm=picture.norm,
        share=picture.share,
        suspect=picture.target in suspects,
        pictures={name: data_uri(content) for name, content in files.items()},
    )


def _details(found: Blob | None) -> dict[str, str]:
    if found is None:
        return {}
    shown = {key: number(value) for key, value in found.get("params", {}).items()}
    few = {k: v for k, v in found.get("details", {}).items() if not isinstance(v, list | tuple)}
    return shown | {key: number(value) for key, value in few.items()}


def _repair(result: Result, record: RepairRecord | None, names: Sequence[str], clean: Clean | None) -> Blob | None:
    repair = result.repair
    if repair is None:
        return None
    triggers: dict[str, list[Shown]] = {}
    measured_by = () if record is None else (("before", record.triggers.before), ("after", record.triggers.after))
    for when, found in measured_by:
        try:
            pictures = triggers_of({"triggers": found})
        except ValueError:
            continue
        if pictures:
            triggers[when] = [_shown(p, result.suspects, names, clean) for p in pictures[:MOST_TRIGGERS]]
    changed = {} if record is None else {key: number(value) for key, value in record.changed.items()}
    return {**to_json(repair), "title": title_of(repair.method), "triggers": triggers, "changed": changed}


def _guards(result: Result) -> Blob | None:
    if result.guards is None:
        return None
    lines = [{**to_json(one), "title": title_of(one.name)} for one in result.guards.guards]
    return {"said": guarded(result), "action": result.guards.action, "lines": lines}


def _provenance(
    result: Result, records: Sequence[Blob], calibration: Mapping[str, Any] | None, provenance: Blob | None
) -> Iterator[tuple[str, str]]:
    yield "Manifest SHA-256", result.manifest_sha256
    yield from ((key, str(value)) for key, value in (provenance or {}).items() if value is not None)
    for key, value in (calibration or {}).items():
        if isinstance(value, str | int | float):
            yield f"Calibration {key.replace('_', ' ')}", number(value, 6)
    for record in records:
        about = record.get("about") or {}
        stated = {"code": about.get("code"), "data": about.get("data"), "signed by vetter": record.get("vetter")}
        words = ", ".join(f"{k} {v}" for k, v in stated.items() if isinstance(v, str | int))
        yield title_of(record["evidence"]["method"]), words
    yield "Sandbox level", number(result.sandbox_level)
    yield "Attestation", result.attestation
    yield "MLflow run", result.mlflow_run or "–"
    yield "Seconds", number(result.seconds)
