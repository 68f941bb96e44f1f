"""What detectors give on members of the bank, as JSON objects.

Each member's evidence is kept under <home>/bank as soon as it exists, so a killed run goes on where it was. As many
members are inspected at once as there are cores.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vetgate.detect  # noqa: F401 - registers the detectors
from flows.bank.data import read_samples
from flows.bank.networks import once
from flows.bank.train import Order, load, trained
from vetgate.architectures import default_layer
from vetgate.contract import DETECTORS, Axis, Evidence, Subject, Trigger
from vetgate.digest import code_digest, sha256_json
from vetgate.errors import DefenceError
from vetgate.role import weight_of
from vetgate.shape import Blob

Given = TypeVar("Given")
Made = TypeVar("Made")
DIGITS = 5


@dataclass(frozen=True)
class Task(Order):
    """One detector on one member."""

    method: str
    params: Blob


def inspected(task: Task) -> Blob:
    """The evidence as a JSON object, from its place or made now; the member is trained if it is not there."""
    weights, card = trained(task)
    path = _stored_at(task, card["key"], ".json")
    return once(path, lambda: _inspect(task, weights, triggers_of(task, card["key"])))


def by_all(tasks: Sequence[Task]) -> Blob:
    """The evidence of several detectors on one member, by method; why not, of one that never counts in a verdict."""
    found = {}
    for task in tasks:
        try:
            found[task.method] = inspected(task)
        except DefenceError as error:
            if weight_of(task.method):
                raise
            found[task.method] = {"refused": str(error)}
    return found


def triggers_of(task: Task, member_key: str) -> Path:
    """Where the reversed triggers of a member lie, once it is inspected by a detector that reverses some."""
    return _stored_at(task, member_key, ".safetensors")


def _stored_at(task: Task, member_key: str, suffix: str) -> Path:
    settled, code = {**DETECTORS[task.method].defaults, **task.params}, code_digest("detect", task.method)
    key = sha256_json([member_key, task.data.splits.digest, task.method, settled, code])[:16]
    return task.place / f"{task.member.name}.{task.method}.{key}{suffix}"


def _inspect(task: Task, weights: Path, triggers: Path) -> Blob:
    network = load(weights, task.member, task.data.shape, task.data.classes)
    rows = network.training(read_samples(task.data.training))
    if rows is None and "train" in DETECTORS[task.method].needs:
        return {"skipped": "this attack has no training set"}
    subject = Subject(
        model=network.model,
        layer=default_layer(network.model),
        classes=task.data.classes,
        clean=read_samples(task.data.splits.invert, task.data.splits.confirm),
        train=rows,
    )
    counted = Gradients(network.model)
    started = time.process_time()
    try:
        given: Evidence = DETECTORS[task.method](subject, seed=task.member.seed, **task.params)
    finally:
        counted.stop()
    found: Blob = {
        "statistic": round(given.statistic, DIGITS),
        "seconds": round(time.process_time() - started, 1),
        "image_gradients": counted.images,
        "seed": given.seed,
    }
    # scores of labels are worth keeping; those of rows are many, and speak of nothing but that training set
    if given.axis is Axis.CLASS:
        found["scores"] = [round(v, DIGITS) for v in given.scores.tolist()]
        # of the rounded scores, so that the same labels are flagged by them
        found["cutoff"] = min(
            (v for v, f in zip(found["scores"], given.flagged.tolist(), strict=True) if f), default=None
        )
        found["targets"] = [t.target for t in given.triggers]
        found["details"] = {k: _rounded(v) for k, v in given.details.items()}
    elif "changed" in network.tensors:
        found["rows"] = _hits(given.flagged, network.tensors["changed"])
    if given.triggers:
        masks, patterns = (torch.stack([getattr(t, name) for t in given.triggers]) for name in ("mask", "pattern"))
        targets = torch.tensor([t.target for t in given.triggers])
        scratch = triggers.with_suffix(".part")
        save_file({"mask": masks.contiguous(), "pattern": patterns.contiguous(), "target": targets}, scratch)
        scratch.rename(triggers)
    return found


def evidence_of(method: str, seen: Blob, shape: Sequence[int], params: Blob | None = None) -> Evidence:
    """The evidence as `judge` reads it, from what was written down; its triggers have targets and no pixels."""
    channels, height, width = shape
    mask, pattern = torch.zeros(1, height, width), torch.zeros(channels, height, width)
    cutoff = seen.get("cutoff")
    return Evidence(
        statistic=seen["statistic"],
        scores=torch.tensor(seen.get("scores", []), dtype=torch.float32),
        # float32 scores against a cutoff in float64
        cutoff=math.inf if cutoff is None else float(torch.tensor(cutoff)),
        triggers=tuple(Trigger(mask, pattern, target) for target in seen.get("targets", [])),
        details=seen.get("details", {}),
        method=method,
        axis=DETECTORS[method].axis,
        params=params or {},
        seed=seen["seed"],
    )


def read_triggers(path: Path) -> tuple[Trigger, ...]:
    """Triggers from the file that an inspection wrote."""
    stored = load_file(path)
    return tuple(
        Trigger(mask, pattern, int(target))
        for mask, pattern, target in zip(stored["mask"], stored["pattern"], stored["target"], strict=True)
    )


class Gradients:
    """Counts the images that a model is called with for the sake of a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self.images = 0
        self._handle = model.register_forward_pre_hook(self._count)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Gradients:
        # a method that works on a copy of the model is counted here too
        return self

    def _count(self, _module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and given[0].requires_grad:
            self.images += len(given[0])

    def stop(self) -> None:
        """Take the counter off."""
        self._handle.remove()


def _hits(flagged: Tensor, changed: Tensor) -> dict[str, int]:
    return {
        "poisoned": len(changed),
        "flagged": int(flagged.sum()),
        "both": int(flagged[changed.long()].sum()),
        "all": len(flagged),
    }


def _rounded(value: float | list[float]) -> float | list[float]:
    return [round(v, DIGITS) for v in value] if isinstance(value, list) else round(value, DIGITS)


def spread(function: Callable[[Given], Made], tasks: list[Given], jobs: int | None) -> Iterator[tuple[Given, Made]]:
    """Each task with what the function gives on it, in order; so many processes, each with one thread."""
    if jobs == 1:
        yield from ((task, function(task)) for task in tasks)
        return
    with ProcessPoolExecutor(jobs or os.cpu_count() or 1, mp_context=get_context("spawn"), initializer=_begin) as pool:
        yield from zip(tasks, pool.map(function, tasks), strict=True)


def _begin() -> None:
    """One thread for each worker, and an end for it when its parent was killed: it would wait for ever."""
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
