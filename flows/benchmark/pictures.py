"""The pictures of docs/benchmark.md: L1 norms of labels, triggers beside what was reversed, and the ROC curve.

A picture of triggers needs the weights and the reversed triggers, which DVC keeps; where they are absent, it stays as
it is, and so do its norms, in triggers.json beside it. The same rows give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from safetensors import safe_open
from sklearn.metrics import roc_curve
from torch import Tensor, nn

from flows.bank.evidence import read_triggers
from flows.bank.stage import TRIGGERS, WEIGHTS
from flows.bank.train import Network
from flows.benchmark.tables import INVERTING, ONE_TARGET, PICTURED, score
from vetgate.contract import Trigger
from vetgate.shape import Blob
from vetgate.verdict.metrics import auroc

Rows = Sequence[Mapping[str, Any]]
Norms = dict[str, dict[str, list[float]]]
NORMS, ROC, KEPT = "norms.png", "roc.png", "triggers.json"
MOST = 6
DPI = 90


def draw(
    place: Path,
    rows: Rows,
    evidence: Mapping[str, Mapping[str, Blob]],
    *,
    weights: Path = WEIGHTS,
    triggers: Path = TRIGGERS,
) -> Blob:
    """Draw what can be drawn into `place`; what the page shows, as paths from the folder above it, and the norms.

    `evidence` is by member and detector, as in `flows.bank.files.Files`.
    """
    place.mkdir(parents=True, exist_ok=True)
    if norms := norms_of(rows, evidence):
        _save(norm_boxes(norms), place / NORMS)
    if {row["kind"] for row in rows} >= {"clean", "backdoored"}:
        _save(roc(rows), place / ROC)
    stored: dict[str, list[Blob]] = json.loads((place / KEPT).read_text()) if (place / KEPT).exists() else {}
    for data in PICTURED:
        if found := pairs_of(rows, data, weights, triggers):
            _save(trigger_pairs(found), place / f"triggers-{data}.png")
            stored[data] = [_compared(*pair) for pair in found]
            (place / KEPT).write_text(json.dumps(stored, indent=1) + "\n")
    return {
        "norms": _shown(place / NORMS),
        "roc": _shown(place / ROC),
        "triggers": {data: _shown(place / f"triggers-{data}.png") for data in PICTURED},
        "compared": [pair for data in PICTURED for pair in stored.get(data, [])],
    }


def one_target(rows: Rows, data: str) -> list[Mapping[str, Any]]:
    """The BadNets members of a data set with one target, whose attack works."""
    return [r for r in rows if (r["data"], r["attack"], r["kind"]) == (data, ONE_TARGET, "backdoored")]


def norms_of(rows: Rows, evidence: Mapping[str, Mapping[str, Blob]]) -> Norms:
    """L1 norms in pixels of infected and uninfected labels of BadNets members, by data set."""
    found: Norms = {}
    for data in PICTURED:
        for row in one_target(rows, data):
            norms = evidence.get(row["name"], {}).get(INVERTING, {}).get("details", {}).get("norms", [])
            for label, norm in enumerate(norms):
                kinds = found.setdefault(data, {"infected": [], "uninfected": []})
                kinds["infected" if label == row["target"] else "uninfected"].append(norm)
    return found


def pairs_of(rows: Rows, data: str, weights: Path, triggers: Path) -> list[tuple[Mapping[str, Any], Trigger, Trigger]]:
    """Up to MOST members with the original and the reversed trigger of their target; none where a file is absent."""
    chosen = one_target(rows, data)[:MOST]
    found = []
    for row in chosen:
        file = f"{row['name']}.safetensors"
        paths = weights / data / file, triggers / f"{INVERTING}-{data}" / file
        if any(not path.exists() or not path.stat().st_size for path in paths):
            return []
        original = originals(paths[0])
        reversed_ = [t for t in read_triggers(paths[1]) if t.target == row["target"]]
        if original and reversed_:
            found.append((row, original[0], reversed_[0]))
    return found


def originals(path: Path) -> tuple[Trigger, ...]:
    """The attacker's patches from a member's file, without its weights."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in ("masks", "patterns") if name in file.keys()}  # noqa: SIM118
    return Network(nn.Identity(), tensors).triggers


def norm_boxes(norms: Norms) -> Figure:
    """One box plot a data set: norms of infected labels beside those of uninfected ones."""
    figure = Figure((3.2 * len(norms), 3), layout="constrained")
    for axes, (data, kinds) in zip(np.atleast_1d(figure.subplots(1, len(norms))), norms.items(), strict=True):
        names = [f"{kind}\n({len(values)} labels)" for kind, values in kinds.items()]
        axes.boxplot(list(kinds.values()), tick_labels=names, widths=0.5)
        axes.set(title=data, ylabel="L1 norm of the mask in pixels")
    return figure


def trigger_pairs(pairs: Sequence[tuple[Mapping[str, Any], Trigger, Trigger]]) -> Figure:
    """A column a member: its original trigger above the reversed one, on grey, with L1 norms."""
    figure = Figure((1.5 * len(pairs) + 0.2, 3.9), layout=ConstrainedLayoutEngine(h_pad=0.1))
    grid = figure.subplots(2, len(pairs), squeeze=False)
    for column, (row, *both) in enumerate(pairs):
        for axes, word, trigger in zip(grid[:, column], ("original", "reversed"), both, strict=True):
            axes.imshow(picture(trigger), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(f"{word}, L1 {trigger.norm:.1f}", fontsize=8)
            axes.set(xticks=[], yticks=[])
        grid[1, column].set_xlabel(f"{row['name']}\nlabel {row['target']}", fontsize=7)
    return figure


def picture(trigger: Trigger) -> Any:
    """A trigger (H, W) or (H, W, 3) blended into grey."""
    blended: Tensor = trigger.stamp(0.5 * trigger.pattern.new_ones(trigger.pattern.shape)).clamp(0, 1)
    return (blended[0] if len(blended) == 1 else blended.permute(1, 2, 0)).numpy()


def roc(rows: Rows) -> Figure:
    """The ROC curve of the verdict's score in both views, and that of the published index."""
    figure = Figure((4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, clean, backdoored in curves(rows):
        truth = np.repeat([0, 1], [len(clean), len(backdoored)])
        false_alarms, found, _ = roc_curve(truth, np.concatenate([clean, backdoored]))
        axes.plot(false_alarms, found, label=f"{name}, AUROC {auroc(clean, backdoored):.3f}")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
    axes.set(xlabel="clean members that alarm", ylabel="backdoored members that are found")
    axes.legend(loc="lower right", fontsize=7)
    return figure


def curves(rows: Rows) -> list[tuple[str, Any, Any]]:
    """What is drawn: names with the scores of clean and of backdoored members."""
    ranked = {
        "model only": [_ranked(row, "model") for row in rows],
        "with its training set": [_ranked(row, "with_data") for row in rows],
        "published anomaly index": [row["index"] for row in rows],
    }
    found = []
    for name, values in ranked.items():
        clean, backdoored = (
            np.array([v for v, row in zip(values, rows, strict=True) if v is not None and row["kind"] == kind])
            for kind in ("clean", "backdoored")
        )
        if len(clean) and len(backdoored):
            found.append((name, clean, backdoored))
    return found


def _ranked(row: Mapping[str, Any], view: str) -> float | None:
    p_value = row.get(view, {}).get("p_value")
    return None if p_value is None else score(p_value)


def _compared(row: Mapping[str, Any], original: Trigger, reversed_: Trigger) -> Blob:
    inside = float((reversed_.mask * (original.mask > 0)).sum()) / max(reversed_.norm, 1e-9)
    about = {key: row[key] for key in ("data", "name", "target")}
    norms = {"original": original.norm, "reversed": reversed_.norm, "inside": inside}
    return about | {key: round(value, 3) for key, value in norms.items()}


def _save(figure: Figure, path: Path) -> None:
    # without the version of matplotlib, which is no matter of the picture
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def _shown(path: Path) -> str | None:
    return f"{path.parent.name}/{path.name}" if path.exists() else None
