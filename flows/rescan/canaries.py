"""Canaries: a network known to be clean and one known to hold a backdoor, which run with every batch of a rescan.

Both are trained on digits once an installation, in a process of its own (`python -m flows.rescan.canaries OUT`) because
the caller imports no torch, and then submitted like any model, but marked, so that nothing else vets or promotes them.
If the clean one fails or the other does not, what the detectors say of real models in this rescan means nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import intake
from tasks.vetting.intake import MAX_BYTES, MAX_FILES
from tasks.vetting.queue import CANARY_SUPPLIER
from vetgate.digest import canonical_json
from vetgate.errors import BadSubmission, StoreError
from vetgate.formats.manifest import hash_directory
from vetgate.verdict.stated import StatedVerdict

CLEAN, BACKDOORED = NAMES = ("canary-clean", "canary-backdoored")
SEEDS = {CLEAN: 101, BACKDOORED: 102}
# what makes the canaries known: how well both classify, and how often the patch works on either
LEAST_ACCURACY, LEAST_SUCCESS, MOST_SUCCESS = 0.9, 0.9, 0.1
TRAINING_SECONDS = 900


@dataclass(frozen=True)
class Canary:
    """One of the two; `label` is where its patch leads, None for the clean one."""

    name: str
    manifest: str
    label: int | None

    def wrong(self, verdict: StatedVerdict) -> str | None:
        """What is wrong about a verdict on it, in words; None when it is as it should be."""
        decision, suspects = verdict.decision, list(verdict.suspects)
        if self.label is None:
            return f"{self.name} came out {decision}" if decision == "FAIL" else None
        if decision != "FAIL":
            return f"{self.name} came out {decision}, expected FAIL for label {self.label}"
        return f"{self.name} failed for {suspects}, expected label {self.label}" if suspects != [self.label] else None


def canaries(settings: Settings) -> tuple[Canary, ...]:
    """The two canaries of this installation, trained and submitted on first use; the same ones every time."""
    folder = settings.home / "canaries"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "trained").exists():
                _train(folder)
            trained = folder / "trained"
            target = int(json.loads((trained / "target.json").read_text()))
            labels = {CLEAN: None, BACKDOORED: target}
            return tuple(Canary(name, _submitted(settings, trained / name), labels[name]) for name in NAMES)
    except (OSError, ValueError) as error:
        raise StoreError(f"expected canaries in {folder}, got {error}; remove it, they are made anew") from error


def _submitted(settings: Settings, directory: Path) -> str:
    """The manifest of a canary, which is marked as one before it can be seen as a submission."""
    store = open_store(settings)
    manifest = hash_directory(directory, max_bytes=MAX_BYTES, max_files=MAX_FILES).sha256
    store.create(f"canaries/{manifest}.json", canonical_json({"name": directory.name}))
    with suppress(BadSubmission, intake.Unproven):
        return intake.read_record(store, manifest).id
    intake.take(settings, directory)
    return manifest


def _train(folder: Path) -> None:
    """Train both in a child process; they are there whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".training-") as room:
        out = Path(room, "trained")
        try:
            done = subprocess.run(
                [sys.executable, "-m", "flows.rescan.canaries", str(out)],
                capture_output=True,
                text=True,
                timeout=TRAINING_SECONDS,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise StoreError(f"expected canaries within {TRAINING_SECONDS} s, got none; free the processor") from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise StoreError(f"expected canaries to be trained in {folder}, got {last}; free memory and disk")
        os.rename(out, folder / "trained")


def _make(out: Path) -> None:
    """Train, check that each is what it should be, and write both submission directories."""
    import torch

    from flows.bank.suppliers import TARGET, Supplier, digits, hand_in, measure

    torch.set_num_threads(1)
    out.mkdir()
    training, test = digits()
    for name in NAMES:
        dishonest = name == BACKDOORED
        directory = hand_in(Supplier(CANARY_SUPPLIER, name, SEEDS[name], dishonest), training, out)
        found = measure(directory, test)
        works = found["patch"] >= LEAST_SUCCESS if dishonest else found["patch"] <= MOST_SUCCESS
        if not works or found["accuracy"] < LEAST_ACCURACY:
            raise StoreError(f"expected a canary {name} that is what it is called, got {found}; change its seed")
    (out / "target.json").write_text(json.dumps(TARGET))


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
