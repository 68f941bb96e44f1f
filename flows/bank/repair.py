"""What a repair does to the backdoored members of a data set; each result is kept under <home>/bank as it comes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

import vetgate.repair  # noqa: F401 - registers the repairs
from flows.bank.data import read_samples
from flows.bank.evidence import Task, evidence_of, inspected, read_triggers, triggers_of
from flows.bank.networks import once
from flows.bank.train import load, trained
from vetgate.architectures import default_layer
from vetgate.contract import DETECTORS, REPAIRS, Evidence, Samples, Subject
from vetgate.digest import code_digest, sha256_json
from vetgate.errors import DefenceError
from vetgate.probe import accuracy, logits
from vetgate.shape import Blob


@dataclass(frozen=True)
class Job:
    """A repair by the evidence that a detector gives on a member."""

    task: Task
    repair: str
    params: Blob


def repaired(job: Job) -> Blob:
    """Accuracy, attack success and robust accuracy before and after, from the bank's place or measured now."""
    task = job.task
    weights, card = trained(task)
    seen = inspected(task)
    code = [code_digest("repair", job.repair), code_digest("detect", task.method)]
    key = sha256_json([card["key"], task.data.splits.digest, task.params, job.params, code])[:16]
    path = task.place / f"{task.member.name}.{job.repair}.{key}.json"
    return once(path, lambda: _repair(job, weights, seen, triggers_of(task, card["key"])))


def _repair(job: Job, weights: Path, seen: Blob, triggers: Path) -> Blob:
    task, method = job.task, REPAIRS[job.repair]
    network = load(weights, task.member, task.data.shape, task.data.classes)
    attacked = network.attacked
    if attacked is None:
        raise DefenceError(f"expected a backdoored member, got {task.member.name}; leave it out")
    test = read_samples(task.data.splits.test)
    evidence: list[Evidence] = []
    if method.uses == "triggers":
        evidence = [replace(evidence_of(task.method, seen, task.data.shape), triggers=read_triggers(triggers))]
    rows = network.training(read_samples(task.data.training)) if method.uses == "flagged" else None
    if rows is None and method.uses == "flagged":
        return {"skipped": "this attack has no training set"}
    subject = Subject(
        model=network.model,
        layer=default_layer(network.model),
        classes=task.data.classes,
        clean=read_samples(task.data.splits.repair),
        train=rows,
    )
    if method.uses in ("flagged", "neurons"):
        # the bank writes down neither rows nor neurons: they are many, and found again
        inspected_on = replace(subject, clean=read_samples(task.data.splits.invert, task.data.splits.confirm))
        evidence = [DETECTORS[task.method](inspected_on, seed=task.member.seed, **task.params)]
    started = time.process_time()
    made = method(subject, *evidence, seed=task.member.seed, **job.params)
    seconds = time.process_time() - started
    pairs = [measured(model, test, attacked) for model in (network.model, made.model)]
    return {name: [one[name] for one in pairs] for name in pairs[0]} | {"seconds": round(seconds, 1)}


def measured(model: nn.Module, test: Samples, attacked: tuple[Tensor, Tensor, Tensor] | None) -> dict[str, float]:
    """Accuracy on test images; on the attacker's, how many do as is wanted and how many get their true label."""
    found = {"accuracy": round(accuracy(model, test.x, test.y), 4)}
    if attacked is not None:
        stamped, true, wanted = attacked
        said = logits(model, stamped).argmax(1)
        found["attack_success"] = round(float((said == wanted).float().mean()), 4)
        found["robust_accuracy"] = round(float((said == true).float().mean()), 4)
    return found
