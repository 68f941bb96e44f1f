"""Run the detectors in the sandbox, and write what each finds at once and once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any

from tasks.progress import progress_of
from tasks.sandbox.host import OPS, Limits, SandboxError
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.estimate import images_for
from tasks.vetting.workplace import workplace_of
from vetgate.digest import PACKAGE, canonical_json, code_digest, sha256_json
from vetgate.errors import DefenceError, MissingInput, StoreError


@dataclass(frozen=True)
class Data:
    """Where the images for each purpose lie, and what they are."""

    splits: dict[str, str] = field(default_factory=dict)
    training: str | None = None
    source: dict[str, Any] = field(default_factory=dict)

    def files(self, *purposes: str) -> list[str]:
        """The files for these purposes; none when the submission names no reference data."""
        return [self.splits[purpose] for purpose in purposes] if self.splits else []


@dataclass(frozen=True)
class Case:
    """What every method of one vetting is run on: paths, digests and plain values."""

    manifest: str
    directory: str
    submission: dict[str, Any]
    seed: int
    limits: Limits
    data: Data = field(default_factory=Data)

    @property
    def model(self) -> dict[str, Any]:
        """What every operation of the sandbox needs to open the model."""
        return {"directory": self.directory, "submission": self.submission}


@dataclass(frozen=True)
class Found:
    """Where a detector's evidence lies, or why there is none."""

    method: str
    key: str | None
    seconds: float | None
    failure: str | None = None
    failure_code: str | None = None


def look(settings: Settings, case: Case) -> dict[str, Any]:
    """What the sandbox says of a model when it has read its every byte; raises NotUnderstood or SandboxError.

    What the same code understood of the same bytes is not read again.
    """
    store = open_store(settings)
    record = _inspection(store, case)
    if record is None:
        sandbox, about = workplace_of(case.manifest).sandbox, _looked(case)
        sandbox.call("inspect", case.model, limits=case.limits)
        record = {"about": about, "described": sandbox.call("describe", case.model, limits=case.limits.single)}
        store.create(_look_path(about), canonical_json(record))
    return dict(record["described"])


def processor_seconds(case: Case, described: dict[str, Any]) -> float | None:
    """What all detectors together will take of one core, about; None where the model could not be timed."""
    image = described.get("image_seconds")
    if image is None:
        return None
    pixels = math.prod(case.submission["input_shape"][1:])
    return float(image * images_for(described["classes"], pixels, training=case.data.training is not None))


def begun(settings: Settings, case: Case, wanted: dict[str, dict[str, Any]]) -> bool:
    """Whether the store holds what some of the detectors (name -> parameters) find."""
    store = open_store(settings)
    keys = {method: sha256_json(provenance(case, "detect", method, params)) for method, params in wanted.items()}
    return any(read_evidence(store, case.manifest, method, key) is not None for method, key in keys.items())


def was_looked_at(store: Store, case: Case) -> bool:
    """Whether the files were understood before, by this very code; raises StoreError when the record is another's."""
    return _inspection(store, case) is not None


def _inspection(store: Store, case: Case) -> dict[str, Any] | None:
    """The record of an earlier inspection by this very code; raises StoreError when it is another's."""
    about = _looked(case)
    try:
        record = json.loads(store.read(_look_path(about)))
    except KeyError:
        return None
    except ValueError as error:
        raise StoreError(f"the inspection of {case.manifest} is no JSON; the store was tampered with") from error
    if not isinstance(record, dict) or record.get("about") != about:
        raise StoreError(f"the inspection of {case.manifest} is about something else; the store was tampered with")
    return record


def _looked(case: Case) -> dict[str, Any]:
    level = workplace_of(case.manifest).sandbox.level
    return {"manifest": case.manifest, "code": _readers(), "limits": case.limits.to_json(), "sandbox_level": level}


def _look_path(about: dict[str, Any]) -> str:
    return f"inspections/{about['manifest']}/{sha256_json(about)}.json"


@cache
def _readers() -> str:
    """SHA-256 over all that opens a submitted file: our readers of formats, and the versions of what they call."""
    folders = (PACKAGE / "formats", PACKAGE / "architectures")
    files = [OPS, PACKAGE / "errors.py", *(path for folder in folders for path in sorted(folder.rglob("*.py")))]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    for package in ("onnx", "safetensors", "torch"):
        digest.update(f"{package} {version(package)}".encode())
    return digest.hexdigest()


def run_detector(settings: Settings, case: Case, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The fields of what one detector found: from the store, else run and saved; raises StoreError if it cannot be."""

    def run() -> dict[str, Any]:
        payload, on_progress = payload_of(case, method, params), progress_of(f"detect {method}")
        with workplace_of(case.manifest).lent() as sandbox:
            answer = sandbox.call("detect", payload, limits=case.limits.single, on_progress=on_progress)
            return {**answer, "sandbox_level": sandbox.level}

    return recorded(settings, case, method, params, run)


def payload_of(case: Case, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """What the sandbox needs to run a detector."""
    return {
        **case.model,
        "method": method,
        "params": params,
        "seed": case.seed,
        "clean": case.data.files("invert", "confirm"),
        "train": [case.data.training] if case.data.training else [],
    }


def recorded(
    settings: Settings, case: Case, method: str, params: dict[str, Any], run: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The fields of what a detector found: from the store, else what `run` gives (evidence, seconds, sandbox_level)."""
    store = open_store(settings)
    about = provenance(case, "detect", method, params)
    key = sha256_json(about)
    saved = read_evidence(store, case.manifest, method, key)
    if saved is not None:
        return asdict(Found(method, key, saved["seconds"]))
    log_invocation(store, case.manifest, method, key)
    try:
        answer = run()
    except (SandboxError, DefenceError) as error:
        without = isinstance(error, MissingInput) and not case.data.splits
        said = (
            f"expected trusted images for {method}, got none; name `reference_data` in submission.yaml, a set that "
            "`vetgate data list` shows"
            if without
            else str(error)
        )
        return asdict(Found(method, None, None, said, error.code))
    # another process that vets the same submission may have been first: what the store holds counts
    store.create(_evidence_path(case.manifest, method, key), canonical_json({"about": about, **answer}))
    return asdict(Found(method, key, answer["seconds"]))


def provenance(case: Case, kind: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Everything that a result depends on; its SHA-256 is the key under which the result is kept."""
    return {
        "manifest": case.manifest,
        "method": method,
        "params": params,
        "code": code_digest("detect" if kind == "detect" else "repair", method),
        "data": {k: v for k, v in case.data.source.items() if k in ("splits", "training")},
        "seed": case.seed,
    }


def read_evidence(store: Store, manifest: str, method: str, key: str) -> dict[str, Any] | None:
    """The evidence kept under a key; raises StoreError when it is not about what the key says."""
    try:
        record: dict[str, Any] = json.loads(store.read(_evidence_path(manifest, method, key)))
    except KeyError:
        return None
    except ValueError as error:
        raise StoreError(f"evidence {method}/{key} of {manifest} is no JSON; the store was tampered with") from error
    if sha256_json(record["about"]) != key or record["about"]["manifest"] != manifest:
        raise StoreError(f"evidence {method}/{key} of {manifest} is about something else; the store was tampered with")
    return record


def log_invocation(store: Store, manifest: str, method: str, key: str) -> None:
    """Write down, once and before it runs, that a method is about to run."""
    line = canonical_json({"at": datetime.now(UTC).isoformat(), "host": socket.gethostname(), "pid": os.getpid()})
    attempt = 1
    while not store.create(f"invocations/{manifest}/{method}/{key}/{attempt:04}.json", line):
        attempt += 1


def _evidence_path(manifest: str, method: str, key: str) -> str:
    return f"evidence/{manifest}/{method}/{key}.json"
