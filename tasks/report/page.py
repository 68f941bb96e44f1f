"""One self-contained HTML page for a vetting: no script, nothing loaded from elsewhere, every given string escaped.

The page holds what was decided and why, each method against its null, the reversed triggers as pictures, the model
before and after repair, and what all of it was computed from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from safetensors import safe_open

from tasks.report.figures import Bar, Histogram, Strip, bars, histogram, strip
from tasks.report.trigger_images import Picture, data_uri, most_suspicious, triggers_of, unpack
from tasks.report.words import meaning, name_of, summary
from vetgate.role import sentence_of, title_of
from vetgate.shape import Blob

MOST_TRIGGERS = 6


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
    result: Blob,
    *,
    evidence: Sequence[Blob],
    verdict: Blob | None = None,
    repaired: Blob | None = None,
    calibration: Blob | None = None,
    submission: Blob | None = None,
    provenance: Blob | None = None,
    clean: Clean | None = None,
) -> str:
    """The page for `result`, the object that `vetgate vet --json` prints.

    `evidence` holds Evidence.to_json() objects or the store's records of them; `verdict` is Verdict.to_json(), whose
    methods carry p_value and null; `repaired` holds the triggers {before, after} and the `result` of the repaired
    model; `calibration` and `provenance` are shown as they are.
    """
    names = _class_names(submission)
    records = [item if "evidence" in item else {"evidence": item} for item in evidence]
    by_method = {record["evidence"]["method"]: record for record in records}
    judged = {m["name"]: m for m in (verdict or {}).get("methods", ())}
    rows = [
        _row({**judged.get(m["name"], {}), **m}, by_method.get(m["name"]), result, names, clean)
        for m in result["methods"]
    ]
    page = {
        "result": result,
        "submission": submission or {},
        "summary": summary(result, names),
        "reasons": [*result.get("reasons", ())] or [*(verdict or {}).get("reasons", ())],
        "suspects": [name_of(k, names) for k in result["suspects"]],
        "rows": rows,
        "repair": _repair(result, repaired, names, clean),
        "meaning": meaning(result, calibration),
        "provenance": [*_provenance(result, records, calibration, provenance)],
    }
    return _environment().get_template("page.html.j2").render(page)


def number(value: Any, digits: int = 3) -> str:
    """A number for people, or a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def percent(value: Any) -> str:
    """A share as per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number, "percent": percent}
    return environment


def _class_names(submission: Blob | None) -> list[str]:
    classes = (submission or {}).get("classes")
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else []


def _row(method: Blob, record: Blob | None, result: Blob, names: Sequence[str], clean: Clean | None) -> Row:
    found = record["evidence"] if record else None
    suspects = [*method.get("suspects", ())]
    failure = method.get("failure")
    shown: list[Picture] = []
    figures: dict[str, Any] = {"bars": [], "bars_words": "", "histogram": None, "flagged": None}
    if found is not None:
        try:
            shown = triggers_of(found)
            figures = _figures(found, shown, suspects)
        except ValueError as error:
            failure = failure or f"evidence that cannot be shown: {error}"
    chosen = most_suspicious(shown, suspects or result["suspects"], MOST_TRIGGERS)
    return Row(
        name=method["name"],
        title=title_of(method["name"]),
        about=sentence_of(method["name"]),
        statistic=method.get("statistic"),
        p_value=method.get("p_value"),
        alarmed=bool(method.get("alarmed")),
        suspects=[name_of(k, names) for k in suspects],
        seconds=method.get("seconds"),
        failure=failure,
        strip=strip(method.get("statistic"), method.get("null")),
        triggers=[_shown(picture, suspects, names, clean) for picture in chosen],
        more_triggers=len(shown) - len(chosen),
        details=_details(found),
        **figures,
    )


def _figures(found: Blob, triggers: Sequence[Picture], suspects: Sequence[int]) -> dict[str, Any]:
    scores = np.asarray(unpack(found["scores"]), np.float64).ravel()
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


def _repair(result: Blob, repaired: Blob | None, names: Sequence[str], clean: Clean | None) -> dict[str, Any] | None:
    repair = result.get("repair")
    if repair is None:
        return None
    triggers: dict[str, list[Shown]] = {}
    for when, found in ((repaired or {}).get("triggers") or {}).items():
        try:
            pictures = triggers_of({"triggers": found})
        except ValueError:
            continue
        triggers[when] = [_shown(p, result["suspects"], names, clean) for p in pictures[:MOST_TRIGGERS]]
    changed = {key: number(value) for key, value in ((repaired or {}).get("changed") or {}).items()}
    return {**repair, "title": title_of(repair["method"]), "triggers": triggers, "changed": changed}


def _provenance(
    result: Blob, records: Sequence[Blob], calibration: Blob | None, provenance: Blob | None
) -> Iterator[tuple[str, str]]:
    yield "Manifest SHA-256", str(result.get("manifest_sha256") or "–")
    yield from ((key, str(value)) for key, value in (provenance or {}).items() if value is not None)
    for key, value in (calibration or {}).items():
        if isinstance(value, str | int | float):
            yield f"Calibration {key.replace('_', ' ')}", number(value, 6)
    for record in records:
        about = record.get("about") or {}
        stated = {"seed": record["evidence"].get("seed"), "code": about.get("code"), "data": about.get("data")}
        words = ", ".join(f"{k} {v}" for k, v in stated.items() if isinstance(v, str | int))
        yield title_of(record["evidence"]["method"]), words
    yield "Sandbox level", number(result.get("sandbox_level"))
    yield "Attestation", str(result.get("attestation") or "–")
    yield "MLflow run", str(result.get("mlflow_run") or "–")
    yield "Seconds", number(result.get("seconds"))
