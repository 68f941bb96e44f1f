"""What the comparison of inversions is printed as: what a label costs, and how well members are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from benchmarks.textbook import anomaly_index
from vetgate.detect.neural_cleanse import neural_cleanse
from vetgate.probe import median
from vetgate.shape import Blob
from vetgate.verdict.metrics import auroc, interval

ENGINE, TEXTBOOK = LOOPS = (neural_cleanse.__name__, "textbook")
# of a member, in nats and in median absolute deviations; higher is more suspicious
STATISTICS = {"log_norm": "log norm", "index": "anomaly index"}
PUBLISHED = 2.0


def pieces_of(row: Blob, loop: str) -> list[Blob]:
    """The runs of a loop on a network: one on many labels, or one a label."""
    return [row[ENGINE]] if loop == ENGINE else list(row[TEXTBOOK])


def per_label(pieces: Sequence[Blob]) -> tuple[float, float]:
    """Image-gradients and processor seconds a label."""
    labels = sum(p.get("labels", 1) for p in pieces)
    return sum(p["image_gradients"] for p in pieces) / labels, sum(p["seconds"] for p in pieces) / labels


def costs(rows: Sequence[Blob], console: Console) -> None:
    """The table of what a label costs, and under it which labels the textbook loop ran on."""
    table = Table(
        *("classes", "network", "loop", "labels", "image-gradients a label", "CPU-s a label", "CPU-s, all labels"),
        *("share of throughput", "textbook / engine"),
        title=f"What a label costs, on {torch.get_num_threads()} thread(s)",
        caption="Share of throughput: images a CPU-second, of the most that the network alone did, forward and back "
        "to the input. ~ from the labels that were run. The last column is of image-gradients.",
    )
    for row in rows:
        for loop in LOOPS:
            table.add_row(*cost_cells(row, loop))
    console.print(table)
    for row in rows:
        console.print(labels_of(row))


def cost_cells(row: Blob, loop: str) -> list[str]:
    """What a label costs in a loop on a network."""
    about, pieces = row["about"], pieces_of(row, loop)
    labels = sum(p.get("labels", 1) for p in pieces)
    gradients, seconds = per_label(pieces)
    # other work on the machine only slows a network down
    alone = max(p["alone"] for each in LOOPS for p in pieces_of(row, each))
    return [
        f"{about['classes']:,}",
        f"{about['name']} ({about['facts']})",
        loop,
        str(labels),
        f"{gradients:,.0f}",
        f"{seconds:.2f}",
        f"{'' if labels == about['classes'] else '~'}{seconds * about['classes']:,.0f}",
        f"{gradients / seconds / alone:.2f}",
        f"{gradients / per_label([row[ENGINE]])[0]:.0f}" if loop == TEXTBOOK else "",
    ]


def labels_of(row: Blob) -> str:
    """Which labels both loops searched, and how large their masks are."""
    about, found, norms = row["about"], row[TEXTBOOK], row[ENGINE]["norms"]
    sample = ", ".join(str(one["label"]) for one in found)
    which = "all labels" if len(found) == about["classes"] else f"a SAMPLE of {len(found)} label(s): {sample}"
    target = "drawn" if about["target"] is None else f"{about['target']} is the target, others are drawn"
    usual = float(np.median(list(norms.values())))
    lines = [f"{about['classes']:,} classes, {about['name']}: the textbook loop ran on {which} ({target})."]
    for one in found:
        end = "stopped early" if one["stopped_early"] else "to the end"
        lines.append(
            f"  label {one['label']}: mask of {one['norm']:.1f} pixels, works on {one['success']:.3f}, {one['steps']} "
            f"steps, {end}; the engine's {norms[str(one['label'])]:.1f}, in the median of its labels {usual:.1f}"
        )
    return "\n".join(lines)


def scores_of(row: Blob, loop: str) -> Blob:
    """The statistics and the named label of a member by a loop."""
    if loop == ENGINE:
        return {name: row[ENGINE][name] for name in (*STATISTICS, "named")}
    norms = torch.tensor([piece["norm"] for piece in row[TEXTBOOK]])
    logs = norms.clamp(min=1e-6).log()
    named = row[TEXTBOOK][int(norms.argmin())]["label"]
    return {"log_norm": median(logs) - float(logs.min()), "index": anomaly_index(norms), "named": named}


def detected(rows: Sequence[Blob], console: Console) -> None:
    """The tables of how well both loops tell backdoored members from clean ones."""
    clean, bad = ([row for row in rows if row["about"]["kind"] == kind] for kind in ("clean", "backdoored"))
    table = Table(
        *("loop", "statistic", "AUROC", "above every clean one", "index > 2: clean", "index > 2: backdoored"),
        *("right label", "image-gradients a label", "CPU-s a label"),
        title=f"Detection on digits: {len(clean)} clean and {len(bad)} backdoored members, all labels of each",
        caption="95 % intervals: bootstrap over members for AUROC, exact for counts.",
    )
    for loop in LOOPS:
        for statistic in STATISTICS:
            table.add_row(*detection_cells(clean, bad, loop, statistic))
    console.print(table)
    each = Table(
        "member", "kind", "target", *(f"{loop}: {s}" for loop in LOOPS for s in (*STATISTICS.values(), "label"))
    )
    for row in rows:
        scores, about = [scores_of(row, loop) for loop in LOOPS], row["about"]
        cells = [cell for s in scores for cell in (f"{s['log_norm']:.2f}", f"{s['index']:.2f}", str(s["named"]))]
        each.add_row(f"{about['name']} ({about['facts']})", about["kind"], str(about["target"]), *cells)
    console.print(each)


def detection_cells(clean: Sequence[Blob], bad: Sequence[Blob], loop: str, statistic: str) -> list[str]:
    """How well a statistic of a loop tells members apart; what holds for the whole loop stands in its first row."""
    scores = [[scores_of(row, loop) for row in group] for group in (clean, bad)]
    groups = [np.array([s[statistic] for s in group]) for group in scores]
    low, high = interval(groups, auroc)
    cells = [
        loop,
        STATISTICS[statistic],
        f"{auroc(*groups):.2f} [{low:.2f}, {high:.2f}]",
        share_of(groups[1] > groups[0].max()),
        *(share_of(group > PUBLISHED) if statistic == "index" else "" for group in groups),
    ]
    if statistic != "log_norm":
        return cells
    gradients, seconds = per_label([piece for row in (*clean, *bad) for piece in pieces_of(row, loop)])
    right = [s["named"] == row["about"]["target"] for s, row in zip(scores[1], bad, strict=True)]
    return [*cells, share_of(np.array(right)), f"{gradients:,.0f}", f"{seconds:.2f}"]


def share_of(hits: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    """How many of how many, with the interval of their share."""
    low, high = exact_interval(int(hits.sum()), len(hits))
    return f"{int(hits.sum())} of {len(hits)} [{low:.2f}, {high:.2f}]"


def exact_interval(hits: int, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """The interval of Clopper and Pearson for a share."""
    found = binomtest(hits, count).proportion_ci(level)
    return float(found.low), float(found.high)
