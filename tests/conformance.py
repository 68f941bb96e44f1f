"""What every method promises, as small checks that run over all that are registered, in the manner of check_estimator.

A method that cannot keep a promise declares it, `waived={"check_name": "reason"}`; the check must then fail.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from vetgate.architectures import ARCHITECTURES, default_layer
from vetgate.attacks.badnets import poison, square
from vetgate.attacks.training import train
from vetgate.contract import Axis, Evidence, Method, Repair, Samples, Subject, Trigger, private_random
from vetgate.errors import DefenceError, MissingInput, UnknownParameter
from vetgate.guard.contract import Guard
from vetgate.inversion import attack_success
from vetgate.probe import accuracy

M = TypeVar("M", Method, Guard)
SHAPE = (1, 8, 8)
CLASSES = 6
# promises about form hold for short runs too; any hyper-parameter of these names is lowered to this
QUICK = {"starts": 2, "sweeps": 8, "steps": 20, "rounds": 1}


@dataclass(frozen=True, eq=False)
class Twins:
    """Two tiny networks alike in all but the rows that were poisoned, the trigger, and test samples."""

    clean: Subject
    trojaned: Subject
    trigger: Trigger
    test: Samples
    results: dict[tuple[str, str], Any] = field(default_factory=dict)

    def result(self, method: Method, twin: str, *, quick: bool = False) -> Any:
        """What the method gives on the twin with seed 0, computed once."""
        key = (method.name, twin + (" quick" if quick else ""))
        if key not in self.results:
            self.results[key] = self.run(method, getattr(self, twin), quick=quick)
        return self.results[key]

    def run(self, method: Method, subject: Subject, *, quick: bool = True, **params: Any) -> Any:
        """Run a method, a repair with all evidence on the trojaned twin that it can use; on the subject's own rows."""
        lowered = {k: v for k, v in QUICK.items() if quick and k in method.defaults}
        return method(subject, *self.evidence(method, subject), **{**lowered, **params})

    def evidence(self, method: Method, subject: Subject) -> list[Evidence]:
        """The evidence that a repair can use."""
        from vetgate.contract import DETECTORS

        def fits(detector: Method) -> bool:
            return method.uses == "flagged" if detector.axis is not Axis.CLASS else method.uses != "flagged"

        if method.uses is None:
            return []
        rows = [None if s.train is None else len(s.train) for s in (subject, self.trojaned)]
        if method.uses == "flagged" and rows[0] is not None and rows[0] != rows[1]:
            return [self.run(d, subject) for d in DETECTORS.values() if fits(d)]
        found = [self.result(d, "trojaned") for d in DETECTORS.values() if fits(d)]
        return [e for e in found if method.uses == "flagged" or bool(getattr(e, method.uses) is not None)]


def make_twins(images: np.ndarray, labels: np.ndarray, architecture: str = "small-cnn", epochs: int = 20) -> Twins:
    """Train the twins on digits images (N, 8, 8) in [0, 16] below class CLASSES."""
    x = torch.from_numpy(images / 16).float()[:, None]
    every = Samples(x, torch.from_numpy(labels).long())
    every = every[every.y < CLASSES]
    # the rows come writer by writer
    every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
    trained, clean, test = every[:600], every[600:850], every[850:]
    trigger = square(SHAPE, 3, row=-3, column=-3, size=3)
    poisoned = poison(trained, trigger, rate=0.05, generator=torch.Generator().manual_seed(0)).samples
    pair = []
    for samples in (trained, poisoned):
        with private_random(0, "weights"):
            model = ARCHITECTURES[architecture](SHAPE, CLASSES)
        train(model, samples, epochs=epochs)
        pair.append(
            Subject(
                model=model,
                layer=default_layer(model),
                classes=CLASSES,
                clean=clean,
                train=samples,
                inputs=torch.cat([test.x[:40], trigger.stamp(test.x[40:60])]),
            )
        )
    return Twins(pair[0], pair[1], trigger, test)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread of torch in every module that imports this, so that sums are rounded the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def twins(one_thread: None) -> Twins:
    """The twins of scikit-learn's digits."""
    digits = load_digits()
    return make_twins(digits.images, digits.target)


class Wrapped(nn.Module):
    """A model with something done to its logits."""

    def __init__(self, inner: nn.Module, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.then = inner, then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.inner(x))


def wrapped(subject: Subject, then: Callable[[Tensor], Tensor]) -> Subject:
    return replace(subject, model=Wrapped(subject.model, then), layer=f"inner.{subject.layer}")


def without(subject: Subject, label: int) -> Subject:
    """The subject without the samples of one class."""

    def rest(samples: Samples | None) -> Samples | None:
        return samples and samples[samples.y != label]

    return replace(subject, clean=rest(subject.clean), train=rest(subject.train))


def state(model: nn.Module) -> list[Any]:
    """Everything about a model that a method must leave as it was."""
    return [
        [(k, v.numpy().tobytes()) for k, v in model.state_dict().items()],
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        [sorted(vars(m)) for m in model.modules()],
    ]


def same(one: Any, other: Any) -> bool:
    """Whether two results agree bit for bit."""
    if isinstance(one, Evidence):
        return bool(one.to_json() == other.to_json())
    return state(one.model)[0] == state(other.model)[0] and one.changed == other.changed


def check_documented_with_source(method: Method, twins: Twins) -> None:
    assert "Source" in method.doc, "its module's docstring says where the idea comes from"
    assert not method.paper or method.paper.startswith("https://")
    assert inspect.getdoc(method.function)
    signature = inspect.signature(method.function)
    assert all(p.annotation != p.empty for p in signature.parameters.values())
    assert all(v is not inspect.Parameter.empty for v in method.defaults.values()), (
        "every hyper-parameter has a default"
    )


def check_waivers_name_checks(method: Method, twins: Twins) -> None:
    assert set(method.waived) <= {c.__name__ for c in CHECKS}
    assert all(method.waived.values())


def check_needs_enforced(method: Method, twins: Twins) -> None:
    assert method.needs
    for need in method.needs:
        with pytest.raises(MissingInput, match=need):
            twins.run(method, replace(twins.clean, **{need: None}))


def check_unknown_parameters_refused(method: Method, twins: Twins) -> None:
    with pytest.raises(UnknownParameter, match="sweepz"):
        twins.run(method, twins.clean, sweepz=1)


def check_unused_data_changes_nothing(method: Method, twins: Twins) -> None:
    spare = {n: None for n in {"clean", "train", "inputs"} - method.needs}
    assert same(twins.result(method, "trojaned", quick=True), twins.run(method, replace(twins.trojaned, **spare)))


def check_model_untouched(method: Method, twins: Twins) -> None:
    model = copy.deepcopy(twins.trojaned.model).train().requires_grad_(True)
    model.register_forward_hook(lambda *_: None)
    before = state(model)
    twins.run(method, replace(twins.trojaned, model=model))
    assert state(model) == before


def check_model_untouched_after_a_crash(method: Method, twins: Twins) -> None:
    # in the middle of its work, or, where that takes fewer runs of the network, at the first of them, if there are any
    if not _broken(method, twins, whole=2):
        _broken(method, twins, whole=0)


def _broken(method: Method, twins: Twins, whole: int) -> bool:
    """Whether the method met a network that breaks after so many runs; it must end then, and leave it as it was."""
    calls = []

    def crash(out: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > whole:
            raise RuntimeError("the network broke")
        return out

    subject = wrapped(replace(twins.trojaned, model=copy.deepcopy(twins.trojaned.model)), crash)
    subject.model.train().requires_grad_(True)
    before = state(subject.model)
    try:
        twins.run(method, subject, **({"batch": 64} if "batch" in method.defaults else {}))
    except RuntimeError as error:
        assert "broke" in str(error)
        assert state(subject.model) == before
        return True
    assert len(calls) <= whole, "it went on although the network broke"
    return False


def check_random_stream_private(method: Method, twins: Twins) -> None:
    torch.manual_seed(11)
    np.random.seed(11)
    expected = (torch.rand(3).tolist(), np.random.rand(3).tolist())
    torch.manual_seed(11)
    np.random.seed(11)
    first = twins.run(method, twins.trojaned)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist()) == expected
    assert same(first, twins.result(method, "trojaned", quick=True)), "same seed, same bits"


def check_form_of_the_result(method: Method, twins: Twins) -> None:
    result = twins.result(method, "trojaned", quick=True)
    assert result.method == method.name and result.seed == 0 and set(result.params) == set(method.defaults)
    if isinstance(result, Repair):
        old, new = twins.trojaned.model.state_dict(), result.model.state_dict()
        assert {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in new.items()}
        assert not result.model.training and all(np.isfinite(v) for v in result.changed.values())
        return
    subject = twins.trojaned
    assert subject.train is not None and subject.inputs is not None
    rows = {Axis.TRAIN: len(subject.train), Axis.CLASS: CLASSES, Axis.INPUT: len(subject.inputs)}
    assert result.axis is method.axis and len(result.scores) == rows[method.axis]  # type: ignore[index]
    for trigger in result.triggers:
        assert trigger.mask.shape == (1, *SHAPE[1:]) and trigger.pattern.shape == SHAPE
        assert trigger.mask.min() >= 0 and trigger.mask.max() <= 1 and 0 <= trigger.target < CLASSES


def check_progress_rises_to_at_most_one(method: Method, twins: Twins) -> None:
    seen: list[float] = []
    twins.run(method, twins.trojaned, progress=seen.append)
    assert seen == sorted(seen) and all(0 <= s <= 1 for s in seen)


def check_absent_class_is_borne(method: Method, twins: Twins) -> None:
    result = twins.run(method, without(twins.trojaned, 1))
    if isinstance(result, Evidence) and method.axis is Axis.CLASS:
        assert len(result.scores) == CLASSES


def check_nan_model_refused(method: Method, twins: Twins) -> None:
    model = copy.deepcopy(twins.trojaned.model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(DefenceError):
        twins.run(method, replace(twins.trojaned, model=model))


def check_json_round_trip(method: Method, twins: Twins) -> None:
    evidence = twins.result(method, "trojaned", quick=True)
    text = json.dumps(evidence.to_json(), allow_nan=False)
    assert json.dumps(Evidence.from_json(json.loads(text)).to_json()) == text


def check_trojaned_twin_scores_higher(method: Method, twins: Twins) -> None:
    trojaned, clean = (twins.result(method, kind).statistic for kind in ("trojaned", "clean"))
    assert trojaned > clean, "a white 3x3 patch is hidden in the trojaned twin, whose statistic is no higher"


def check_target_stands_out(method: Method, twins: Twins) -> None:
    scores = twins.result(method, "trojaned").scores
    assert int(scores.argmax()) == twins.trigger.target, "the trojaned twin's target does not score highest"


def check_scale_of_logits_ignored(method: Method, twins: Twins) -> None:
    alike(
        twins.result(method, "trojaned", quick=True),
        twins.run(method, wrapped(twins.trojaned, lambda out: 10 * out)),
        torch.arange(len(twins.result(method, "trojaned", quick=True).scores)),
    )


def check_permuted_classes_permute_scores(method: Method, twins: Twins) -> None:
    order = torch.tensor([4, 2, 0, 5, 3, 1])  # new class i is old class order[i]
    subject = wrapped(twins.trojaned, lambda out: out[:, order])
    assert subject.clean is not None and subject.train is not None
    place = order.argsort()
    moved = replace(
        subject,
        clean=Samples(subject.clean.x, place[subject.clean.y]),
        train=Samples(subject.train.x, place[subject.train.y]),
    )
    alike(twins.result(method, "trojaned", quick=True), twins.run(method, moved), order)


def check_permuted_rows_permute_scores(method: Method, twins: Twins) -> None:
    subject = twins.trojaned
    assert subject.train is not None and subject.inputs is not None
    order = torch.randperm(
        len(subject.train) if method.axis is Axis.TRAIN else len(subject.inputs),
        generator=torch.Generator().manual_seed(1),
    )
    moved = (
        replace(subject, train=subject.train[order])
        if method.axis is Axis.TRAIN
        else replace(subject, inputs=subject.inputs[order])
    )
    alike(twins.result(method, "trojaned", quick=True), twins.run(method, moved), order)


def check_batch_size_ignored(method: Method, twins: Twins) -> None:
    before = twins.result(method, "trojaned", quick=True)
    alike(before, twins.run(method, twins.trojaned, batch=37), torch.arange(len(before.scores)))


def check_clean_accuracy_kept(method: Method, twins: Twins) -> None:
    repaired = twins.result(method, "trojaned").model
    before = accuracy(twins.trojaned.model, twins.test.x, twins.test.y)
    assert accuracy(repaired, twins.test.x, twins.test.y) >= before - 0.03


def check_backdoor_weakens(method: Method, twins: Twins) -> None:
    repaired = twins.result(method, "trojaned").model
    x, y = twins.test.x, twins.test.y
    before = attack_success(twins.trojaned.model, x, y, twins.trigger)
    assert attack_success(repaired, x, y, twins.trigger) <= before / 2


def alike(before: Evidence, after: Evidence, order: Tensor) -> None:
    """Whether evidence is as it was but for the order of its rows; sums in another order round differently."""
    spread = float(before.scores.max() - before.scores.min())
    assert (after.scores - before.scores[order]).abs().max() <= 0.02 * spread + 1e-6
    assert abs(after.statistic - before.statistic) <= 0.02 * abs(before.statistic) + 1e-6


ANY = (
    check_documented_with_source,
    check_waivers_name_checks,
    check_needs_enforced,
    check_unknown_parameters_refused,
    check_unused_data_changes_nothing,
    check_model_untouched,
    check_model_untouched_after_a_crash,
    check_random_stream_private,
    check_form_of_the_result,
    check_progress_rises_to_at_most_one,
    check_absent_class_is_borne,
    check_nan_model_refused,
)
DETECTOR = (check_json_round_trip, check_trojaned_twin_scores_higher, check_scale_of_logits_ignored)
CLASS = (check_target_stands_out, check_permuted_classes_permute_scores)
ROWS = (check_permuted_rows_permute_scores,)
BATCHED_ROWS = (check_batch_size_ignored,)
REPAIR = (check_clean_accuracy_kept, check_backdoor_weakens)
CHECKS = ANY + DETECTOR + CLASS + ROWS + BATCHED_ROWS + REPAIR


def cases(methods: Iterable[M], checks_for: Callable[[M], Iterable[Callable[..., None]]]) -> list[Any]:
    """A case of pytest for each promise of each method; a promise that it waives must fail."""
    return [
        pytest.param(
            method,
            check,
            id=f"{method.name}-{check.__name__}",
            marks=[pytest.mark.xfail(reason=method.waived[check.__name__], strict=True)]
            if check.__name__ in method.waived
            else [],
        )
        for method in methods
        for check in checks_for(method)
    ]


def checks_for(method: Method) -> list[Callable[[Method, Twins], None]]:
    """The promises that a method of this kind and axis makes."""
    if method.kind == "repair":
        return [*ANY, *REPAIR]
    if method.axis is Axis.CLASS:
        return [*ANY, *DETECTOR, *CLASS]
    return [*ANY, *DETECTOR, *ROWS, *(BATCHED_ROWS if "batch" in method.defaults else ())]
