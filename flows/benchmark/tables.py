"""From the rows of score.py to the tables of docs/benchmark.md: JSON objects, None where nothing was measured.

Members whose attack failed count neither as clean nor as backdoored. AUROC and shares are estimates with 95 % bootstrap
intervals over models; a member without a p-value is a miss in the shares and left out of the AUROC.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from vetgate.role import source_of
from vetgate.shape import Blob
from vetgate.verdict.metrics import Array, auroc, cross_entropy, defence_effectiveness, interval, probabilities, share

Rows = Sequence[Mapping[str, Any]]
# without the supplier's training set, with it, and without it as a graph that no reference is like
VIEWS = ("model", "with_data", "unlike")
LEVEL, STRICT = 0.05, 0.01
# fewer references than this reach no p-value of STRICT by counting alone
COUNTED = 99
# the detector whose triggers are inverted ones, and the published cut of its index
INVERTING = source_of("triggers") or ""
INDEX = 2.0
# attack success (a share) that a repair may leave
SOLVED = 0.1
PICTURED = ("mnist", "gtsrb")
ONE_TARGET = "badnets"
SEVERAL = ", several targets"
DIGITS = 6


def tables(
    rows: Rows,
    *,
    repairs: Mapping[str, Mapping[str, Blob]] | None = None,
    outdated: Sequence[str] = (),
    transfer: Mapping[str, Any] | None = None,
    fitted_on: Rows | None = None,
    rule: tuple[float, float] | None = None,
) -> Blob:
    """All tables. Probabilities are fitted on the rows `fitted_on`, on the other folds of `rows` without.

    `repairs` holds {repair: {member: result}}, `outdated` names those that have changed since, `transfer` what the
    calibration holds of that, `rule` the least attack success and the most accuracy lost of a backdoored member; all
    but the first are passed through.
    """
    return {
        "detectors": sorted({method for row in rows for method in row["model"]["methods"]}),
        "members": members(rows),
        "failed": [
            {key: row[key] for key in ("name", "attack", "accuracy", "attack_success")}
            for row in _of(rows, "failed attack")
        ],
        "false_alarms": {view: false_alarms(rows, view) for view in VIEWS},
        "detection": {view: detection(rows, view) for view in VIEWS},
        "cross_entropy": {view: entropy(rows, view, fitted_on) for view in VIEWS},
        "cost": cost(rows),
        "repairs": {name: repaired(rows, results) for name, results in (repairs or {}).items()},
        "outdated": [*outdated],
        INVERTING: neural_cleanse(rows),
        "transfer": transfer,
        "rule": rule and {"success": rule[0], "lost": rule[1]},
    }


def members(rows: Rows) -> list[Blob]:
    """How many members of each kind there are, a data set and over all."""
    kinds = {"clean": "clean", "backdoored": "backdoored", "failed": "failed attack"}
    return [
        {"name": name, **{key: len(_of(group, kind)) for key, kind in kinds.items()}}
        for name, group in _groups(rows, "data")
    ]


def false_alarms(rows: Rows, view: str) -> list[Blob]:
    """Alarms on clean members, a data set and over all: {count, n} each."""
    return [_alarms(name, group, view) for name, group in _groups(_of(rows, "clean", view), "data")]


def _alarms(name: str, group: Rows, view: str) -> Blob:
    ruled = [row[view] for row in group]
    return {
        "name": name,
        "n": len(group),
        "fail": _count(r["decision"] == "FAIL" for r in ruled),
        "not_pass": _count(r["decision"] != "PASS" for r in ruled),
        "strict": _count(_at_most(r["p_value"], STRICT) for r in ruled),
        "extrapolated": _extrapolated(group, view),
        "references": _range([r["references"] for r in ruled if r["references"] is not None]),
        "index": _count(row["index"] > INDEX for row in group if row["index"] is not None),
    }


def detection(rows: Rows, view: str) -> list[Blob]:
    """How backdoored members are told from the clean ones of the same data sets: by attack, by data set, over all."""
    clean, backdoored = _of(rows, "clean", view), _of(rows, "backdoored", view)
    by_attack, by_data = list(_groups(backdoored, "attack")), list(_groups(backdoored, "data"))
    labelled = [("attack", *g) for g in by_attack[:-1]] + [("data", *g) for g in by_data[:-1]]
    return [_detected(by, name, group, clean, view) for by, name, group in [*labelled, ("all", *by_data[-1])]]


def _detected(by: str, name: str, group: Rows, clean: Rows, view: str) -> Blob:
    sets = {row["data"] for row in group}
    beside = [row for row in clean if row["data"] in sets]
    ruled = [row[view] for row in group]
    methods = dict.fromkeys(m for row in [*group, *beside] for m in row[view]["methods"])
    single = [row for row in group if row["target"] is not None and not row["attack"].endswith(SEVERAL)]
    return {
        "by": by,
        "name": name,
        "n": len(group),
        "clean": len(beside),
        "auroc": _separation(_scores(beside, view), _scores(group, view)),
        "level": _rate(_at_most(r["p_value"], LEVEL) for r in ruled),
        "strict": _rate(_at_most(r["p_value"], STRICT) for r in ruled),
        "extrapolated": _extrapolated(group, view),
        "fail": _rate(r["decision"] == "FAIL" for r in ruled),
        "target": _rate(row[view]["right"] for row in single),
        "index": _rate(row["index"] > INDEX for row in group if row["index"] is not None),
        "detectors": {m: _separation(_scores(beside, view, m), _scores(group, view, m)) for m in methods},
    }


def entropy(rows: Rows, view: str, fitted_on: Rows | None = None) -> Blob:
    """Cross-entropy in nats of probabilities by a fit on other folds, or on `fitted_on`."""
    own, others = _scored(rows, view), _scored(fitted_on or (), view)
    every = [*own, *others]
    scores = np.array([score(row[view]["p_value"]) for row in every])
    truth = np.array([row["kind"] == "backdoored" for row in every], dtype=float)
    # one fold of its own for what others are fitted for
    folds = np.array([-1 if others and i < len(own) else row["fold"] for i, row in enumerate(every)])
    p, truth = probabilities(scores, truth, folds)[: len(own)], truth[: len(own)]

    def loss(clean: Array, backdoored: Array) -> float:
        kinds = np.repeat([0.0, 1.0], [len(clean), len(backdoored)])
        return cross_entropy(np.concatenate([clean, backdoored]), kinds)

    return {"n": len(own), **_estimate([p[truth == 0], p[truth == 1]], loss)}


def cost(rows: Rows) -> list[Blob]:
    """Median seconds and images with a gradient of each detector, and seconds of all a member."""
    return [_costs(name, group) for name, group in _groups(rows, "data")]


def _costs(name: str, group: Rows) -> Blob:
    kinds = ("seconds", "image_gradients")
    totals = [math.fsum(row["seconds"].values()) for row in group]
    return {
        "name": name,
        "n": len(group),
        "detectors": {
            m: {kind: _median([row[kind][m] for row in group if m in row[kind]]) for kind in kinds}
            for m in dict.fromkeys(m for row in group for m in row["seconds"])
        },
        "total": {"median": _median(totals), "max": _rounded(max(totals, default=math.nan))},
    }


def repaired(rows: Rows, results: Mapping[str, Blob]) -> list[Blob]:
    """What a repair does to backdoored members, by attack and over all: means [before, after]."""
    done = [row for row in _of(rows, "backdoored") if "accuracy" in results.get(row["name"], {})]
    return [_repair(name, [results[row["name"]] for row in group]) for name, group in _groups(done, "attack")]


def _repair(name: str, done: Sequence[Blob]) -> Blob:
    worth = np.array([defence_effectiveness(tuple(r["accuracy"]), tuple(r["attack_success"])) for r in done])
    return {
        "name": name,
        "n": len(done),
        **{key: _means([r[key] for r in done]) for key in ("accuracy", "attack_success", "robust_accuracy")},
        "der": _estimate([worth], share),
        "solved": _count(r["attack_success"][1] <= SOLVED for r in done),
        "seconds": _median([r["seconds"] for r in done]),
    }


def neural_cleanse(rows: Rows) -> Blob:
    """The published index beside our p-values, on clean and BadNets members with one target: each, and medians."""
    seen = [row for row in rows if row["data"] in PICTURED and row["index"] is not None]
    states = {
        "clean": _of(seen, "clean"),
        "infected": [row for row in _of(seen, "backdoored") if row["attack"] == ONE_TARGET],
    }
    single = [_cleansed(row, state) for state, group in states.items() for row in group]
    pairs = [(data, state) for data in dict.fromkeys(row["data"] for row in single) for state in states]
    medians = [
        _medians(data, state, [row for row in single if (row["data"], row["state"]) == (data, state)])
        for data, state in pairs
    ]
    return {"medians": medians, "members": single}


def _cleansed(row: Mapping[str, Any], state: str) -> Blob:
    ruled = row["model"]
    return {
        **{key: row[key] for key in ("data", "name", "index", "target")},
        "state": state,
        "alarm": row["index"] > INDEX,
        "own": ruled["methods"].get(INVERTING),
        **{key: ruled[key] for key in ("p_value", "decision", "suspects")},
    }


def _medians(data: str, state: str, group: Sequence[Blob]) -> Blob:
    found = {key: _median([row[key] for row in group if row[key] is not None]) for key in ("index", "own", "p_value")}
    counts = {"alarms": _count(row["alarm"] for row in group), "fail": _count(r["decision"] == "FAIL" for r in group)}
    return {"data": data, "state": state, "n": len(group), **found, **counts}


def score(p_value: float) -> float:
    """What members are ranked by: -log10 of their p-value."""
    return -math.log10(max(p_value, 1e-12))


def _of(rows: Rows, kind: str, view: str | None = None) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["kind"] == kind and (view is None or view in row)]


def _groups(rows: Rows, key: str) -> Iterator[tuple[str, Rows]]:
    """The rows by a key, in order of appearance, then all of them."""
    for name in dict.fromkeys(row[key] for row in rows):
        yield name, [row for row in rows if row[key] == name]
    yield "all", rows


def _scored(rows: Rows, view: str) -> list[Mapping[str, Any]]:
    kinds = [*_of(rows, "clean", view), *_of(rows, "backdoored", view)]
    return [row for row in kinds if row[view]["p_value"] is not None]


def _scores(rows: Rows, view: str, method: str | None = None) -> Array:
    found = [row[view]["p_value"] if method is None else row[view]["methods"].get(method) for row in rows]
    return np.array([score(p) for p in found if p is not None])


def _extrapolated(rows: Rows, view: str) -> bool:
    return any((row[view]["references"] or 0) < COUNTED for row in rows)


def _at_most(p_value: float | None, level: float) -> bool:
    return p_value is not None and p_value <= level


def _separation(clean: Array, backdoored: Array) -> Blob:
    return _estimate([clean, backdoored], auroc)


def _rate(hits: Iterable[bool]) -> Blob:
    found = np.array(list(hits), dtype=float)
    return {"n": len(found), **_estimate([found], share)}


def _estimate(groups: Sequence[Array], statistic: Callable[..., float]) -> Blob:
    low, high = interval(groups, statistic)
    return {"value": _rounded(statistic(*groups)), "low": _rounded(low), "high": _rounded(high)}


def _count(hits: Iterable[bool]) -> Blob:
    found = list(hits)
    return {"count": sum(found), "n": len(found)}


def _means(pairs: Sequence[Sequence[float]]) -> list[float | None]:
    return [_rounded(fmean(pair[i] for pair in pairs) if pairs else math.nan) for i in (0, 1)]


def _median(values: Sequence[float]) -> float | None:
    return _rounded(median(values)) if values else None


def _range(values: Sequence[int]) -> list[int] | None:
    return [min(values), max(values)] if values else None


def _rounded(value: float) -> float | None:
    """A value to DIGITS significant digits; NaN is no JSON."""
    return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")
