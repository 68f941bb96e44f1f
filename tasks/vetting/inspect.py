"""Run the detectors in the sandbox, and sign and write what each finds at once and once."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tasks.progress import progress_of
from tasks.sandbox.host import OPS, Crashed, Died, Limits, Sandbox, SandboxError
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting import signed_results
from tasks.vetting.conversion import converted, is_canonical, keep_conversion, take_written
from tasks.vetting.estimate import images_for
from tasks.vetting.intake import Record
from tasks.vetting.workplace import workplace_of
from vetgate.digest import PACKAGE, canonical_json, code_digest, sha256_json
from vetgate.errors import DefenceError, MissingInput, NotUnderstood
from vetgate.role import by_itself, role_of, scores_labels
from vetgate.trust.keys import read_trust_root
from vetgate.trust.seeds import Seed
from vetgate.trust.statements import EVIDENCE, INSPECTION
from vetgate.verdict.first_look import FirstLook


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
    """What every method of one vetting is run on: paths, digests and plain values; `run` names the seed's run."""

    manifest: str
    directory: str
    submission: dict[str, Any]
    seed: Seed
    limits: Limits
    data: Data = field(default_factory=Data)
    run: str = ""

    @property
    def model(self) -> dict[str, Any]:
        """What every operation of the sandbox needs to open the model."""
        return {"directory": self.directory, "submission": self.submission}

    @property
    def n_classes(self) -> int:
        """K, whether the submission counts or names its classes."""
        classes = self.submission["classes"]
        return classes if isinstance(classes, int) else len(classes)


@dataclass(frozen=True)
class Found:
    """Where a detector's evidence lies, or why there is none."""

    method: str
    key: str | None
    seconds: float | None
    failure: str | None = None
    failure_code: str | None = None


def look(settings: Settings, record: Record, case: Case) -> dict[str, Any]:
    """What the sandbox says of a model when it has read its every byte; raises NotUnderstood or SandboxError.

    Only `written`, the manifest of what is to be vetted in its place, where it is not of the canonical form. What the
    same code understood of the same bytes is not read again.
    """
    about = _looked(case)
    before = signed_results.find(settings, INSPECTION, about)
    if before is None:
        written = _written(settings, record, case)
        if written.id != record.id:
            return {"written": written.id}
        sandbox = workplace_of(case.manifest).sandbox
        described = sandbox.call("describe", case.model, limits=case.limits.single)
        before = signed_results.save(settings, INSPECTION, about, {"described": described})
    return dict(before.found["described"])


def _written(settings: Settings, record: Record, case: Case) -> Record:
    """What vetgate writes of a submission, or wrote of it before by this very code; itself where it is that."""
    known = is_canonical(open_store(settings), read_trust_root(settings.trust_root), record)
    if not known and record.submission.submitted is not None:
        raise NotUnderstood(
            "expected a model as its supplier has it, got one whose description says that vetgate wrote it, which no "
            "vetter of this installation signed; take `submitted` out of submission.yaml"
        )
    workplace = workplace_of(case.manifest)
    if not known and (before := converted(settings, record.id, _readers())) is not None:
        return before
    out = workplace.made / "canonical"
    out.unlink(missing_ok=True)
    # what an earlier version wrote stays what it is
    asked = case.model if known else {**case.model, "out": str(out)}
    answer = understood(workplace.sandbox, asked, case.limits)
    if known:
        return record
    written = record
    if answer:
        room = workplace.given / "canonical"
        shutil.rmtree(room, ignore_errors=True)
        written = take_written(settings, record, Path(case.directory), out, answer["changes"], room)
    keep_conversion(settings, record, _readers(), written)
    return written


def understood(sandbox: Sandbox, asked: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """What the sandbox says of the files that it read; those that break a reader or a runtime are not understood."""
    try:
        return sandbox.call("inspect", asked, limits=limits)
    except Died as error:
        raise NotUnderstood(f"expected files that their readers survive, got a crash: {error}") from error


def first_look_of(settings: Settings, case: Case) -> FirstLook:
    """What the model does on trusted images, found once; raises NotUnderstood or SandboxError."""
    about = {**_looked(case), "data": bound(case.data.source), "what": "first look"}
    saved = signed_results.find(settings, INSPECTION, about)
    if saved is None:
        asked = {**case.model, "samples": case.data.files("validate")}
        try:
            found = workplace_of(case.manifest).sandbox.call("look_first", asked, limits=case.limits.single)
        except DefenceError as error:
            # what is served must be what is looked at
            raise NotUnderstood(str(error)) from error
        saved = signed_results.save(settings, INSPECTION, about, found)
    return FirstLook.from_json(saved.found)


def processor_seconds(case: Case, described: dict[str, Any]) -> float | None:
    """What all detectors together will take of one core, about; None where the model could not be timed."""
    image = described.get("image_seconds")
    if image is None:
        return None
    pixels = math.prod(case.submission["input_shape"][1:])
    return float(image * images_for(described["classes"], pixels, training=case.data.training is not None))


def begun(settings: Settings, case: Case, wanted: dict[str, dict[str, Any]]) -> bool:
    """Whether the store holds what some of the detectors (name -> parameters) find."""
    asked = (provenance(case, "detect", method, params) for method, params in wanted.items())
    return any(signed_results.find(settings, EVIDENCE, about) is not None for about in asked)


def was_looked_at(settings: Settings, case: Case) -> bool:
    """Whether a trusted vetter understood the files before, by this very code."""
    looked = signed_results.find(settings, INSPECTION, _looked(case)) is not None
    return looked or converted(settings, case.manifest, _readers()) is not None


def _looked(case: Case) -> dict[str, Any]:
    level = workplace_of(case.manifest).sandbox.level
    return {"manifest": case.manifest, "code": _readers(), "limits": case.limits.to_json(), "sandbox_level": level}


@cache
def _readers() -> str:
    """SHA-256 over all that opens a submitted file: our readers of formats, and the versions of what they call."""
    folders = (PACKAGE / "formats", PACKAGE / "architectures", PACKAGE / "scan")
    own = (PACKAGE / "errors.py", PACKAGE / "verdict" / "first_look.py")
    files = [OPS, *own, *(path for folder in folders for path in sorted(folder.rglob("*.py")))]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    for package in ("h5py", "onnx", "onnxruntime", "safetensors", "timm", "torch", "transformers"):
        # some of them build networks that only some installations take in
        with suppress(PackageNotFoundError):
            digest.update(f"{package} {version(package)}".encode())
    return digest.hexdigest()


def run_detector(settings: Settings, case: Case, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The fields of what one detector found: from the store, else run and saved; raises StoreError if it cannot be."""

    def run() -> dict[str, Any]:
        payload, limits = asked_of(settings, case, method, params)
        with workplace_of(case.manifest).lent() as sandbox:
            answer = sandbox.call("detect", payload, limits=limits, on_progress=progress_of(f"detect {method}"))
            return {**answer, "sandbox_level": sandbox.level}

    return recorded(settings, case, method, params, run)


def asked_of(settings: Settings, case: Case, method: str, params: dict[str, Any]) -> tuple[dict[str, Any], Limits]:
    """What the sandbox needs to run a detector, on this installation's device where it is for one, and its limits."""
    role = role_of(method)
    limits = replace(case.limits.single, device=settings.device if role is not None and role.on_device else "cpu")
    payload = {
        **case.model,
        "method": method,
        "params": params,
        "seed": case.seed.number,
        "clean": case.data.files("invert", "confirm"),
        # what looks at rows has nothing to say of images that show nothing
        "surrogates": not case.data.splits and scores_labels(method) and not by_itself(method),
        "train": [case.data.training] if case.data.training else [],
        "device": limits.device,
    }
    return payload, limits


def recorded(
    settings: Settings, case: Case, method: str, params: dict[str, Any], run: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The fields of what a detector found: from the store, else what `run` gives (evidence, seconds, sandbox_level).

    It is signed by this process, which is no sandbox, and kept without the number of its seed.
    """
    about = provenance(case, "detect", method, params)
    saved = signed_results.find(settings, EVIDENCE, about)
    if saved is None:
        log_invocation(open_store(settings), case.manifest, method, sha256_json(about))
        try:
            saved = signed_results.save(settings, EVIDENCE, about, _seedless(run(), case))
        except (SandboxError, DefenceError) as error:
            return asdict(Found(method, None, None, _said(error, case, method), error.code))
    return asdict(Found(method, saved.key, saved.found["seconds"]))


def _said(error: SandboxError | DefenceError, case: Case, method: str) -> str:
    if not isinstance(error, MissingInput) or case.data.splits:
        return str(error)
    return (
        f"expected trusted images for {method}, got none; name `reference_data` in submission.yaml, a set that "
        "`vetgate data list` shows"
    )


def _seedless(answer: dict[str, Any], case: Case) -> dict[str, Any]:
    """What was found without its seed; raises Crashed for evidence that was drawn from another."""
    evidence = dict(answer["evidence"])
    if evidence.pop("seed", None) != case.seed.number:
        raise Crashed(f"expected evidence from the seed that was given, got another of {case.manifest}; refuse it")
    return {**answer, "evidence": evidence}


def provenance(case: Case, kind: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Everything that a result depends on; its SHA-256 begins the key under which the result is kept."""
    return {
        "manifest": case.manifest,
        "method": method,
        "params": params,
        "code": code_digest("detect" if kind == "detect" else "repair", method),
        "data": bound(case.data.source),
        "run": case.run,
        "seed_commitment": case.seed.commitment,
    }


def bound(source: Mapping[str, Any]) -> dict[str, Any]:
    """Of the description of reference data what evidence is bound to: the file, its splits, and the training data."""
    return {name: value for name, value in source.items() if name in ("sha256", "splits", "training")}


def read_evidence(settings: Settings, manifest: str, method: str, key: str) -> dict[str, Any] | None:
    """The evidence under a key with its `about` and `vetter`, or None; raises Denied unless a vetter signed it."""
    trust = read_trust_root(settings.trust_root)
    signed = signed_results.read(open_store(settings), trust, EVIDENCE, manifest, method, key)
    return None if signed is None else {"about": signed.about, "vetter": signed.vetter, **signed.found}


def log_invocation(store: Store, manifest: str, method: str, key: str) -> None:
    """Write down, once and before it runs, that a method is about to run."""
    line = canonical_json({"at": datetime.now(UTC).isoformat(), "host": socket.gethostname(), "pid": os.getpid()})
    attempt = 1
    while not store.create(f"invocations/{manifest}/{method}/{key}/{attempt:04}.json", line):
        attempt += 1
