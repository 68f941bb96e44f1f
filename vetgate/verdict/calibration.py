"""What clean models look like: the null distributions that turn statistics into p-values.

A calibration holds the evidence of every detector on clean reference models, bound by digest to code, parameters and
data. From it come, for a model with K classes, the null of each method and of the combined score. Label norms are
standardised with a scale that has a floor, and their null is simulated for K labels, so that ten classes and
forty-three are each held to their own tail.

Source    The simulated null follows from the observation that "index > 2" is a statement about one label, not a model;
          p-values are (1 + #{null >= s}) / (n + 1), as in conformal prediction (Vovk et al., 2005).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, ValidationError, model_validator

from vetgate import shipped
from vetgate.digest import code_digest, sha256_json
from vetgate.errors import BadPolicy
from vetgate.role import FEWEST_CLASSES, by_label, role_of, scores_labels, weight_of
from vetgate.trust.named_file import read_named
from vetgate.verdict.reasons import Code, Reason

Array = NDArray[np.float64]

SHIPPED = shipped.CALIBRATION
# own references of a data set stand alone from this many on; below, all references are pooled
ENOUGH = 8
DRAWS = 20_000
# how many labels the floor of a scale counts for
PRIOR = 10
# and how many models what is usual for a label in the whole data set, beside those of the architecture
PRIOR_MODELS = 2
# 1.4826 makes a median of absolute deviations estimate sigma for normal data
TO_SIGMA = 1.4826
STANDARD_NORMAL = NormalDist()
# normal scores end here, where simulation ends too
CLIP = 4.0
# and what one method adds to the combined score: so far that an alarm of one with half the weight counts by itself
MOST = 6.0
# what a label adds, in the same unit, that stands out by the least effect and no more
LITTLE = 0.5


class Seen(BaseModel, frozen=True, extra="forbid"):
    """What one detector gave on one reference model; scores only where they run over classes."""

    statistic: FiniteFloat
    scores: tuple[FiniteFloat, ...] | None = None


class Reference(BaseModel, frozen=True, extra="forbid"):
    """One clean model: its data, the images (C, H, W) it takes, how good it is, and what every detector gave on it."""

    data: str
    data_sha256: str
    image: tuple[int, int, int]
    architecture: str
    classes: int
    seed: int
    accuracy: FiniteFloat
    seen: dict[str, Seen]

    @property
    def identity(self) -> tuple[str, str, int]:
        """What no other reference of a calibration has."""
        return self.data_sha256, self.architecture, self.seed

    @model_validator(mode="after")
    def _labels_are_all_there(self) -> Self:
        for name, seen in self.seen.items():
            # a method that is held against models may come without any, but not with those of other labels
            if (by_label(name) or seen.scores) and len(seen.scores or ()) != self.classes:
                raise ValueError(f"expected {self.classes} scores of {name} on {self.data}, got {seen.scores}")
        return self


class MethodPin(BaseModel, frozen=True, extra="forbid"):
    """The code and parameters that the references' evidence was made with."""

    code: str
    params: dict[str, int | float | str | bool | None]


class Left(BaseModel, frozen=True, extra="forbid"):
    """Clean models judged by references that are all of another kind: how many, and how many alarms at 5 %."""

    models: NonNegativeInt
    alarms: NonNegativeInt


class Bank(BaseModel, frozen=True, extra="forbid"):
    """The file: pinned methods, their evidence on clean reference models, and how far that carries over.

    `transfer` says for each data set and architecture what its models give when it is left out of the references;
    `bank` is the digest of both, so that a file of which a part was exchanged is known by it.
    """

    bank: str = ""
    methods: dict[str, MethodPin]
    references: tuple[Reference, ...]
    transfer: dict[Literal["data", "architecture"], dict[str, Left]] = Field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 of the references and how far they carry over."""
        blob = self.model_dump(mode="json")
        return sha256_json([blob["references"], blob["transfer"]])

    @model_validator(mode="after")
    def _references_are_distinct(self) -> Self:
        if len({r.identity for r in self.references}) < len(self.references):
            raise ValueError("expected each reference once, got one twice; it would count as two models")
        return self


@dataclass(frozen=True, eq=False)
class Null:
    """The null of one method for one subject, from clean models.

    The scale's floor, their label scales, the least effect that counts, and their statistics, standardised and raw;
    and what each label comes to in clean models on the subject's own data (K,), None where that is not known.
    """

    floor: float
    scales: Array
    least: float
    statistics: Array
    raw: Array
    usual: Array | None = None

    def less_usual(self, scores: Sequence[float]) -> Array:
        """Class scores (K,) above their centre, less what is usual for each label: some have small triggers anyway."""
        return less_usual(scores, self.usual)


@dataclass(frozen=True, eq=False)
class Calibration:
    """A loaded bank with its identity, and why it does not fit the code at hand (empty when it does)."""

    bank: Bank
    id: str
    stale: tuple[Reason, ...] = field(default=())

    def mismatch(self, method: str, params: Mapping[str, Any]) -> Reason | None:
        """Why this calibration says nothing about a method run with these parameters; None when it fits."""
        pin = self.bank.methods.get(method)
        if pin is None:
            return Reason(Code.NO_REFERENCES, method)
        if pin.params != dict(params):
            return Reason(Code.OTHER_PARAMETERS, method)
        return next((reason for reason in self.stale if reason.method == method), None)

    def other_bytes(self, name: str | None, data_sha256: str | None) -> Reason | None:
        """Why references on the data set of this name are not on its bytes; None when they are, or there are none."""
        held = {r.data_sha256 for r in self.bank.references if r.data == name}
        if not held or data_sha256 in held:
            return None
        return Reason(Code.OTHER_DATA, figures={"data": name})

    def for_images(self, data_sha256: str | None, image: Sequence[int]) -> Calibration:
        """This calibration for subjects that take images (C, H, W): no others on their data, where enough take such."""
        own = [r for r in self.bank.references if r.data_sha256 == data_sha256]
        alike = [r for r in own if r.image == tuple(image)]
        if len(alike) in (0, len(own)) or len(alike) < ENOUGH:
            return self
        rest = [r for r in self.bank.references if r.data_sha256 != data_sha256]
        return Calibration(self.bank.model_copy(update={"references": (*rest, *alike)}), self.id, self.stale)

    def references(self, method: str, data_sha256: str | None, level: float) -> list[Reference]:
        """The references that stand for a subject: those of its own data set when they reach `level`, else all."""
        own, holding = self._holding(method, data_sha256)
        return own if _reach(method, len(own), level) else holding

    def short_of(self, method: str, data_sha256: str | None, level: float) -> Reason | None:
        """Why the references of a method are too few for a false-alarm rate of `level`; None when they suffice."""
        count = len(self.references(method, data_sha256, level))
        if _reach(method, count, level):
            return None
        return Reason(Code.TOO_FEW_REFERENCES, method, figures={"references": count, "level": level})

    def knows_few(self, method: str, data_sha256: str | None, level: float, classes: int) -> bool:
        """Whether a model of so few classes can be held against clean ones: as many on the same data as `level` needs.

        Those of other data say nothing of it, and without one of them as much must be known of the others.
        """
        own = [r for r in self._holding(method, data_sha256)[0] if r.classes == classes]
        return len(own) > ENOUGH and countable(len(own), level)

    def knows_labels(self, method: str, data_sha256: str | None, level: float, classes: int | None = None) -> bool:
        """Whether it can be said what is usual for each label: all references are on the data, of so many classes."""
        chosen = self.references(method, data_sha256, level)
        alike = [r for r in chosen if (r.data_sha256, r.classes) == (data_sha256, classes or r.classes)]
        return by_label(method) and len(alike) == len(chosen) >= ENOUGH

    def knows_architecture(self, method: str, data_sha256: str | None, level: float, architecture: str | None) -> bool:
        """Whether any reference that a subject is held against is of its architecture."""
        return any(r.architecture == architecture for r in self.references(method, data_sha256, level))

    def counts(
        self, method: str, data_sha256: str | None, level: float, classes: int, architecture: str | None
    ) -> bool:
        """Whether a method's scores mean something beside the references; habits of data need some on it."""
        role = role_of(method)
        if role is None or not (role.by_data or role.by_architecture):
            return True
        return self.knows_labels(method, data_sha256, level, classes) and (
            not role.by_architecture or self.knows_architecture(method, data_sha256, level, architecture)
        )

    def null(
        self,
        method: str,
        data_sha256: str | None,
        level: float,
        *,
        labels: bool = False,
        architecture: str | None = None,
    ) -> Null:
        """The null of a method for subjects on this data set; raises BadPolicy when no reference holds it.

        Pooled over data sets, the floor and the least effect are those of the set where they are smallest: a bound
        that holds everywhere would hide what stands out in a narrow one. With `labels`, where it knows them, a label is
        held against what the same label gives in clean models, above all in those of the `architecture`, and else
        against the other labels of its model.
        """
        chosen = self.references(method, data_sha256, level)
        if not chosen:
            raise BadPolicy(
                f"the calibration holds no references for {method}; make them with `vetgate calibrate`, or `make bank`"
            )
        floors, leasts, scales, statistics, raw = [], [], [], [], []
        usual: Array | None = None
        for alike in _by_data(chosen):
            seen = [r.seen[method] for r in alike]
            if labels:
                kinds = tuple(r.architecture for r in alike)
                usual, values, own = _like_among_like(tuple(s.scores or () for s in seen), kinds, architecture)
            else:
                values = np.array([s.statistic for s in seen])
                own = np.array([_own_scale(s.scores) for s in seen if s.scores])
            # one model's scale is a noisy estimate from few labels; the models of a data set share theirs
            floors.append(float(np.sqrt(np.mean(np.square(own)))) if len(own) else spread_of(values))
            # two spreads above the median: one odd reference must not hide what it resembles
            leasts.append(float(np.median(values)) + 2 * spread_of(values))
            scales.append(np.full(len(seen), floors[-1]))
            # centred within the data set, so that pooling compares like with like
            statistics.append((values - np.median(values)) / max(spread_of(values), 1e-6))
            raw.append(values)
        shown = np.sort(np.concatenate(raw))
        return Null(min(floors), np.concatenate(scales), min(leasts), np.concatenate(statistics), shown, usual)

    def standardise(self, method: str, values: Array | float, data_sha256: str | None) -> Array:
        """A method's statistics in units of the clean references' spread around their median."""
        own, holding = self._holding(method, data_sha256)
        chosen = own if len(own) >= ENOUGH else holding
        sets = [np.array([r.seen[method].statistic for r in alike]) for alike in _by_data(chosen)]
        found = [(np.asarray(values) - float(np.median(v))) / max(spread_of(v), 1e-6) for v in sets]
        return np.asarray(np.min(found, axis=0), dtype=np.float64)

    def units(self, method: str, statistic: float, scores: Sequence[float] | None, data_sha256: str | None) -> Array:
        """How far labels (K,) stand out by a method that is held against models, or the model (1,) without any."""
        values = scores if scores and scores_labels(method) else (statistic,)
        return self.standardise(method, np.array(values), data_sha256)

    def peers(self, methods: Collection[str], data_sha256: str | None, level: float) -> list[Reference]:
        """The references whose combined scores a subject's is held against: its own data set's, or all."""
        holding = [r for r in self.bank.references if set(methods) <= set(r.seen)]
        own = [r for r in holding if r.data_sha256 == data_sha256]
        return own if len(own) >= ENOUGH and countable(len(own), level) else _many_classes(holding)

    def clean_scores(
        self,
        methods: Collection[str],
        data_sha256: str | None,
        level: float,
        classes: int | None = None,
        architecture: str | None = None,
    ) -> Array:
        """Sorted combined scores of the peers, each by what the other references of its data set say of it.

        What is usual for a label, and for its architecture, is known of peers only where it is known of the subject:
        like is held against like.
        """
        peers = self.peers(methods, data_sha256, level)
        labels = {m: self.knows_labels(m, data_sha256, level, classes) for m in methods}
        kinds = {m: self.knows_architecture(m, data_sha256, level, architecture) for m in methods}
        return np.sort(
            [combined({m: self._units(r, m, level, labels[m], kinds[m]) for m in methods}).max() for r in peers]
        )

    def _units(self, reference: Reference, method: str, level: float, labels: bool, kinds: bool) -> Array:
        """How far a reference's labels (K,) stand out by one method, or the model (1,), held against the others."""
        # the same for every subject
        asked = id(reference), method, level, labels, kinds
        if asked not in self._known:
            self._known[asked] = self._held_against_others(reference, method, level, labels, kinds)
        return self._known[asked]

    @cached_property
    def _known(self) -> dict[tuple[Any, ...], Array]:
        return {}

    def _held_against_others(self, reference: Reference, method: str, level: float, labels: bool, kinds: bool) -> Array:
        others = tuple(r for r in self.bank.references if r is not reference)
        without = Calibration(self.bank.model_copy(update={"references": others}), self.id)
        seen = reference.seen[method]
        if not by_label(method):
            return without.units(method, seen.statistic, seen.scores, reference.data_sha256)
        known = labels and without.knows_labels(method, reference.data_sha256, level)
        kind = reference.architecture if kinds else None
        null = without.null(method, reference.data_sha256, level, labels=known, architecture=kind)
        scores = null.less_usual(seen.scores or ()).tolist()
        return label_units(scores, label_p_values(scores, null), null.least)

    def _holding(self, method: str, data_sha256: str | None) -> tuple[list[Reference], list[Reference]]:
        holding = [r for r in self.bank.references if method in r.seen]
        return [r for r in holding if r.data_sha256 == data_sha256], _many_classes(holding)


def _many_classes(references: Sequence[Reference]) -> list[Reference]:
    """Those whose labels can be compared with each other: what is said of others holds on their own data alone."""
    return [r for r in references if r.classes >= FEWEST_CLASSES]


def _reach(method: str, count: int, level: float) -> bool:
    return count >= ENOUGH and (by_label(method) or countable(count, level))


def countable(references: int, level: float) -> bool:
    """Whether so many references can tell a rate of `level` by counting: no p-value is below 1 / (n + 1)."""
    return 1 / (references + 1) <= level


def _by_data(references: Sequence[Reference]) -> list[list[Reference]]:
    """References by data set, and by the size of images where enough of one set take such; fewer are with the most."""
    sizes = Counter((r.data, r.image) for r in references)
    usual = {data: image for (data, image), _ in reversed(sizes.most_common())}
    kinds = [(r.data, r.image if sizes[r.data, r.image] >= ENOUGH else usual[r.data]) for r in references]
    return [[r for r, of in zip(references, kinds, strict=True) if of == kind] for kind in sorted(set(kinds))]


def load_calibration(path: Path | None = None) -> Calibration | None:
    """The calibration in a JSON file, by default the shipped one; None when there is no file. Raises BadPolicy."""
    where = path or SHIPPED
    if not where.exists():
        if path is not None:
            raise BadPolicy(f"expected a calibration at {where}, got no file; build one with `dvc repro`")
        return None
    try:
        raw = json.loads(read_named(where))
        bank = Bank.model_validate(raw)
    except (OSError, ValueError, ValidationError) as error:
        raise BadPolicy(f"{where} is not a calibration: {error}; restore it or rebuild it with `dvc repro`") from error
    exchanged = raw.get("bank") != bank.digest()
    stale = tuple(Reason(Code.OTHER_REFERENCES, name) for name in sorted(bank.methods if exchanged else ())) + tuple(
        Reason(Code.OTHER_CODE, name) for name, pin in sorted(bank.methods.items()) if pin.code != _code(name)
    )
    return Calibration(bank, sha256_json(raw), stale)


def _code(method: str) -> str | None:
    try:
        return code_digest("detect", method)
    except OSError:
        # a method that is no longer there
        return None


@lru_cache(maxsize=4096)
def _own_scale(scores: tuple[float, ...]) -> float:
    return lower_scale(scores)


@lru_cache(maxsize=4096)
def _like_among_like(
    scores: tuple[tuple[float, ...], ...], kinds: tuple[str, ...], kind: str | None
) -> tuple[Array, Array, Array]:
    """What is usual for each label (K,), and each model's farthest label (n,) and lower scale (n,) less that.

    `kinds` are the architectures of the models, and `kind` the subject's. A clean model that is held against its like
    must not have had a say in what is usual.
    """
    rows = np.array([less_usual(row, None) for row in scores])
    if kind not in kinds:
        # nothing can be said of its architecture, and so nothing is said of theirs
        kinds, kind = ("",) * len(rows), None
    left = [less_usual(row, others) for row, others in zip(rows, _usual_by_others(rows, kinds), strict=True)]
    found = (
        usual_of(rows, kinds, kind),
        np.array(list(map(farthest, left))),
        np.array([lower_scale(row) for row in left]),
    )
    for array in found:
        # shared by all that ask for the same
        array.flags.writeable = False
    return found


def usual_of(rows: Array, kinds: Sequence[str], kind: str | None) -> Array:
    """The median (K,) of models' centred class scores (n, K), drawn towards that of the n' models of one architecture.

    It moves n' / (n' + PRIOR_MODELS) of the way: a few models say little, and many speak for themselves.
    """
    usual = np.asarray(np.median(rows, axis=0))
    alike = rows[[other == kind for other in kinds]]
    return _drawn(usual, np.median(alike, axis=0), len(alike)) if len(alike) else usual


def _drawn(usual: Array, alike: Array, count: int) -> Array:
    weight = count / (count + PRIOR_MODELS)
    return np.asarray(weight * alike + (1 - weight) * usual)


def _usual_by_others(rows: Array, kinds: Sequence[str]) -> Array:
    """What is usual by all models (n, K) but the one of the row, drawn as `usual_of` does; kind "" is of none."""
    usual = _medians_of_others(rows)
    for kind in {kind for kind in kinds if kind and kinds.count(kind) > 1}:
        alike = [own == kind for own in kinds]
        usual[alike] = _drawn(usual[alike], _medians_of_others(rows[alike]), sum(alike) - 1)
    return usual


def _medians_of_others(rows: Array) -> Array:
    """The medians (n, K) of every column of rows (n, K) without the row itself, from one sort."""
    n = len(rows)
    order = np.sort(rows, axis=0)
    rank = rows.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")

    def without(place: int) -> Array:
        # the value at a place of the column from which a row is taken out
        return np.asarray(np.where(place < rank, order[place], order[place + 1]))

    return (without((n - 2) // 2) + without((n - 1) // 2)) / 2


def less_usual(scores: Sequence[float] | Array, usual: Array | None) -> Array:
    """Class scores (K,) above their centre, less what is usual (K,) for each label."""
    values = np.asarray(scores, dtype=np.float64)
    centred = values - centre_of(values)
    return np.asarray(centred if usual is None else centred - usual)


def centre_of(scores: Array) -> float:
    """What class scores (K,) are measured from: their median, or 0 where they are too few to have one.

    Few labels are told apart by what is usual for each of them, which is taken off first.
    """
    return 0.0 if len(scores) < FEWEST_CLASSES else float(np.median(scores))


def farthest(scores: Array) -> float:
    """How far the farthest of class scores (K,) lies above their centre."""
    return float(scores.max() - centre_of(scores))


def lower_scale(scores: Sequence[float] | Array) -> float:
    """Robust scale of the suspicious half of class scores: 1.4826 times the median distance of those above the median.

    The other half stops early when inverted and says nothing about how close clean labels come. Of few labels it is
    that of all distances, above the centre and below.
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) < FEWEST_CLASSES:
        return float(TO_SIGMA * np.median(np.abs(values)))
    above = values - np.median(values)
    return float(TO_SIGMA * np.median(above[above >= 0]))


def outliers(scores: Sequence[float], floor: float) -> Array:
    """Distance (K,) of class scores above their centre, in units of their lower scale drawn towards the floor."""
    values = np.asarray(scores, dtype=np.float64)
    return np.asarray((values - centre_of(values)) / steadied(lower_scale(scores), len(values), floor))


def steadied(scale: Array | float, classes: int, floor: float) -> Array:
    """A lower scale from K / 2 labels, averaged with the floor as if that came from PRIOR labels more.

    It never falls below sqrt(PRIOR / (PRIOR + K / 2)) of the floor, and many labels speak for themselves. Few labels
    say nothing of a scale, and have the floor's: where all of them are odd, none may hide another.
    """
    half = 0.0 if classes < FEWEST_CLASSES else classes / 2
    variance = (PRIOR * floor**2 + half * np.square(scale)) / (PRIOR + half)
    return np.asarray(np.maximum(np.sqrt(variance), 1e-6))


def draws_for(classes: int) -> int:
    """How many clean models with K labels are simulated: as many as fit in 64 MB."""
    return min(DRAWS, 8_000_000 // max(classes, 1))


@dataclass(frozen=True, eq=False)
class OutlierNull:
    """Simulated clean models: their largest outliers (draws,), sorted, and what those add to the combined score."""

    outliers: Array
    largest: Array
    effects: Array
    least: float

    @cached_property
    def added(self) -> Array:
        """Normal scores (draws,) of the largest outliers, little where the effect is less than the least."""
        # the others count for little, whatever their score
        above = self.effects > self.least
        units = np.zeros(len(self.effects))
        units[above] = normal_score(tail(self.outliers, self.largest[above]))
        return unit_of(self.effects, units, self.least)


def outlier_null(classes: int, null: Null) -> OutlierNull:
    """Clean models with K labels whose scales are drawn from the references'."""
    if null.floor > 0 and bool(np.all(null.scales == null.floor)):
        # only ratios count, so models that all scatter like the floor are simulated once
        order, largest, top = _simulated(classes, 1.0, (1.0,))
        return OutlierNull(order, largest, top * null.floor, null.least)
    return OutlierNull(*_simulated(classes, null.floor, tuple(null.scales.tolist())), null.least)


@lru_cache(maxsize=64)
def _simulated(classes: int, floor: float, scales: tuple[float, ...]) -> tuple[Array, Array, Array]:
    """The largest outliers (draws,) of clean models, sorted and as they came, and these in the scores' unit."""
    stream = np.random.default_rng(classes)
    draws = draws_for(classes)
    scores = stream.standard_normal((draws, classes)) * stream.choice(np.array(scales), draws)[:, None]
    scores.sort(axis=1)
    centre = np.zeros((draws, 1)) if classes < FEWEST_CLASSES else np.median(scores, axis=1, keepdims=True)
    # sorted, the suspicious half of the scores is the upper half of the columns
    above = scores[:, classes // 2 :] - centre
    largest = above[:, -1] / steadied(TO_SIGMA * np.median(above, axis=1), classes, floor)
    found = np.sort(largest), largest, above[:, -1]
    for array in found:
        # shared by all that ask for the same
        array.flags.writeable = False
    return found


def tail(null: Array, values: Array | float) -> Array:
    """p-values (1 + #{null >= v}) / (n + 1) of values under a sorted null (n,)."""
    at_least = len(null) - np.searchsorted(null, values, side="left")
    return np.asarray((1 + at_least) / (len(null) + 1), dtype=np.float64)


def extended_tail(clean: Array, simulated: Array, values: Array | float) -> Array:
    """p-values under the sorted combined scores of clean models (n,); beyond all of them, the simulated tail goes on.

    Down to 1 / (n + 1) they count models, as conformal p-values do; what is smaller is extrapolated.
    """
    counted = tail(clean, values)
    if not len(clean):
        return tail(simulated, values)
    beyond = tail(simulated, values) / float(tail(simulated, float(clean[-1])))
    return np.where(np.asarray(values) > clean[-1], counted * np.minimum(1.0, beyond), counted)


def label_p_values(scores: Sequence[float], null: Null) -> Array:
    """p-values (K,) of how far each label stands out, each as if it were the largest outlier."""
    return tail(outlier_null(len(scores), null).outliers, outliers(scores, null.floor))


def label_units(scores: Sequence[float], p: Array, least: float) -> Array:
    """Normal scores (K,) of labels' p-values; little where a label stands out by less than the least effect."""
    values = np.asarray(scores, dtype=np.float64)
    return unit_of(values - centre_of(values), normal_score(p), least)


def unit_of(effects: Array, units: Array, least: float) -> Array:
    """What effects count for: their units, or up to LITTLE in proportion where they are below the least effect.

    What stays below it is no effect, however tight the other labels lie; but methods that point at one label a little
    are more than nothing, and models are told apart down there, too.
    """
    little = LITTLE * np.clip(effects / max(least, 1e-6), 0, 1)
    return np.asarray(np.where(effects > least, np.maximum(units, little), little), dtype=np.float64)


def normal_score(p: Array | float) -> Array:
    """Standard normal score of one-sided p-values, within +-CLIP."""
    flat = np.clip(np.atleast_1d(np.asarray(p, dtype=np.float64)), 1e-9, 1 - 1e-9)
    return np.clip([STANDARD_NORMAL.inv_cdf(1 - v) for v in flat.tolist()], -CLIP, CLIP)


def contribution(units: Array | float) -> Array:
    """What standardised statistics add to the combined score: at most MOST, and never less than nothing.

    A method that finds a model cleaner than clean ones must not outweigh another that finds a backdoor.
    """
    return np.clip(np.asarray(units, dtype=np.float64), 0, MOST)


def combined(units: Mapping[str, Array]) -> Array:
    """The combined scores (K,) of labels from how far they stand out by each method, (K,) or (1,) for the model.

    Methods that point at one label strengthen each other, and those that point at several do not; a model comes to as
    much as its most suspicious label.
    """
    total = np.zeros(1)
    for name, of in units.items():
        total = total + weight_of(name) * contribution(of)
    return total


def combined_null(nulls: Mapping[str, Null], labels: Mapping[str, OutlierNull], classes: int) -> Array:
    """Sorted combined scores (DRAWS,) of clean models: simulated labels, and of other methods resampled statistics.

    Methods are drawn independently of each other here, each with one label that it raises, any of them; what counts
    models, `clean_scores`, keeps them together.
    """
    stream, everywhere = np.random.default_rng(0), np.zeros(DRAWS)
    raised: list[tuple[Array, NDArray[np.int64]]] = []
    for name in [*sorted(labels), *sorted(set(nulls) - set(labels))]:
        clean = labels[name].added if name in labels else nulls[name].statistics
        added = weight_of(name) * contribution(stream.choice(clean, DRAWS))
        if scores_labels(name):
            raised.append((added, stream.integers(classes, size=DRAWS)))
        else:
            everywhere += added
    at_each = [sum(other * (place == where) for other, where in raised) for _, place in raised]
    return np.asarray(np.sort(everywhere + (np.max(at_each, axis=0) if at_each else 0.0)), dtype=np.float64)


def spread_of(values: Array) -> float:
    """Robust spread of values (n,) around their median, a standard deviation where they are normal."""
    return float(TO_SIGMA * np.median(np.abs(values - np.median(values))))
