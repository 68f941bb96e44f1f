"""A nightly rescan of many registered models, a few of them out of date: what do the unchanged ones cost?

`python -m benchmarks.rescan --models 1000 --stale 10 [--json FILE]` sets up an installation with so many models in
production, each with its own signed verdict, promotion and ledger entries, and rescans it twice. The models that are
out of date are networks on digits and are really vetted; the others are a few bytes each and are compared only. Setting
up takes far longer than what is measured: `--folder DIR --set-up` does only that, and `--folder DIR` finds it again, so
that the rescans can be timed while nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from mlflow.tracking import MlflowClient
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flows.production.reconcile import reconcile
from flows.production.watch import watch
from flows.rescan.local import rescan_locally
from flows.rescan.stale import Present
from tasks.mlflow.client import experiment, registry
from tasks.mlflow.promoted import MODEL, PROMOTIONS
from tasks.records.alias_moves import AliasMove, end_move, enter_move
from tasks.records.attestations import save_attestation
from tasks.records.ledger_chain import gate_key
from tasks.records.ledger_entries import note
from tasks.records.ledger_state import ledger_state
from tasks.records.ledger_verify import verify_ledger
from tasks.records.promotions import save_promotion
from tasks.settings import Settings, load_settings
from tasks.store.open import open_store
from tasks.vetting.intake import Record, take
from tests import steady
from vetgate.trust import attest
from vetgate.trust.keys import load_or_create_key, utc_now

NAME = "m{:04}"


def main() -> None:
    """Run it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--stale", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where to set up, and to find what was set up")
    parser.add_argument("--set-up", action="store_true", help="set up only; needs --folder")
    given = parser.parse_args()
    if given.set_up and given.folder is None:
        parser.error("--set-up needs --folder")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        os.environ.update(steady.environment(steady.build(folder / "steady"), folder / "home"))
        done = folder / "set-up.json"
        if not done.exists():
            set_up(load_settings(), folder, given.models, given.stale)
            done.write_text(json.dumps([given.models, given.stale]))
        if json.loads(done.read_text()) != [given.models, given.stale]:
            parser.error(f"{folder} was set up with other numbers: {done.read_text()}")
        if given.set_up:
            return
        rows = measure(given.models, given.stale)
    table = Table("what", "models", "seconds")
    for row in rows:
        table.add_row(row["what"], str(row["models"]), f"{row['seconds']:.2f}")
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(models: int, stale: int) -> list[dict[str, Any]]:
    """One row for each part of the two rescans, and for a reconciliation of everything and of one model."""
    settings = load_settings()
    rows: list[dict[str, Any]] = []
    everything = _timed(rows, "nightly rescan: everything", models, lambda: rescan_locally(settings))
    assert (everything["stale"], everything["errors"]) == (stale, []), everything
    assert [item["decision"] for item in everything["vetted"]] == ["PASS"] * stale, everything["vetted"]
    spent = everything["seconds"]
    parts = {
        "read what covers them": models,
        "compare digests": models,
        "hash a thirtieth": everything["hashed"],
        "canaries, and vet what is out of date": stale,
    }
    rows += [
        {"what": what, "models": count, "seconds": spent[part]}
        for (what, count), part in zip(parts.items(), ("read", "compare", "hash", "vet"), strict=True)
    ]
    unchanged = sum(spent[part] for part in ("read", "compare", "hash"))
    rows.append({"what": "the unchanged in all", "models": models - stale, "seconds": unchanged})
    second = _timed(rows, "next nightly rescan: nothing out of date", models, lambda: rescan_locally(settings))
    assert (second["stale"], second["unchanged"], second["errors"]) == (0, models, []), second
    _timed(rows, "reconcile everything", models, lambda: reconcile(settings))
    _timed(rows, "reconcile one model", 1, lambda: reconcile(settings, NAME.format(0)))
    verify_ledger(settings)
    return rows


def set_up(settings: Settings, folder: Path, models: int, stale: int) -> None:
    """So many models in production, `stale` of them with a verdict that is too old."""
    network = _network()
    now = utc_now()
    # a key that was valid when the oldest verdict was signed
    load_or_create_key(settings.gate_key, settings.trust_root, now=now - timedelta(days=90))
    present = Present.of(watch(settings))
    with registry(settings) as client:
        home = experiment(client, settings, PROMOTIONS)
    for number in track(range(models), "setting up", console=Console(stderr=True)):
        out_of_date = number < stale
        directory = folder / "given" / NAME.format(number)
        _describe(directory, network if out_of_date else number.to_bytes(8, "big"))
        record = take(settings, directory)
        issued = now - timedelta(days=present.policy.rescan.max_age_days + 1 if out_of_date else 1)
        digest = _attest(settings, present, record, issued)
        with registry(settings) as client:
            _promote(settings, client, home, directory, record, digest, now)


def _network() -> bytes:
    """The weights of a clean network on digits."""
    from safetensors.torch import save

    from flows.bank.suppliers import ARCHITECTURE, CLASSES, SHAPE, digits
    from vetgate.architectures import ARCHITECTURES
    from vetgate.attacks.training import train
    from vetgate.contract import private_random

    with private_random(1, "benchmark"):
        model = ARCHITECTURES[ARCHITECTURE](SHAPE, CLASSES)
    train(model, digits()[0], epochs=20, seed=1)
    return bytes(save({key: value.contiguous() for key, value in model.state_dict().items()}))


def _describe(directory: Path, weights: bytes) -> None:
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(weights)
    described = {
        "name": directory.name,
        "supplier": "a benchmark",
        "task": "image-classification",
        "model": "model.safetensors",
        "format": "safetensors",
        "architecture": "small-cnn",
        "input_shape": [1, 8, 8],
        "classes": 10,
        "reference_data": "digits",
    }
    (directory / "submission.yaml").write_text(yaml.safe_dump(described))


def _attest(settings: Settings, present: Present, record: Record, issued: datetime) -> str:
    """A PASS with everything as it is now; the digest of the attestation."""
    pins = present.pins(record.submission)
    predicate = attest.verdict_predicate(
        name=record.submission.name,
        verdict="PASS",
        issued=issued,
        valid=timedelta(days=present.policy.valid_days),
        policy={"name": present.policy.name, "sha256": pins.policy},
        methods=[{"name": n, "code": pin.code, "params": dict(pin.params)} for n, pin in pins.methods.items()],
        reference_data=pins.data,
        calibration={"id": pins.calibration},
        sandbox_level=1,
    )
    envelope = attest.sign(attest.statement(record.manifest.digests, record.id, predicate), gate_key(settings)[0])
    note(settings, save_attestation(open_store(settings), record.id, envelope))
    return attest.digest(envelope)


def _promote(
    settings: Settings, client: MlflowClient, home: str, directory: Path, record: Record, digest: str, now: datetime
) -> None:
    """A version with these bytes, its signed record, and the alias: what promotion leaves, without its checks."""
    store, (key, trust) = open_store(settings), gate_key(settings)
    model = f"prod.{record.submission.name}"
    for entry in record.manifest.files:
        store.copy_in_file(f"vetted/{record.id}/{entry.path}", directory / entry.path, sha256=entry.sha256)
    run = client.create_run(home).info
    client.log_artifacts(run.run_id, str(directory), MODEL)
    client.set_terminated(run.run_id)
    client.create_registered_model(model)
    version = client.create_model_version(model, source=f"{run.artifact_uri}/{MODEL}", run_id=run.run_id)
    name, number = record.submission.name, str(version.version)
    sha256 = save_promotion(
        store,
        trust,
        key,
        name=name,
        version=number,
        manifest=record.id,
        files=record.manifest.digests,
        source=str(version.source),
        run_id=run.run_id,
        attestation=digest,
        now=now,
    )
    move = AliasMove(name, "champion", number, None, record.id, digest, (), sha256)
    enter_move(settings, ledger_state(settings), move)
    client.set_registered_model_alias(model, "champion", number)
    end_move(ledger_state(settings), name, "champion")


def _timed(rows: list[dict[str, Any]], what: str, models: int, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    started = time.monotonic()
    found = work()
    rows.append({"what": what, "models": models, "seconds": round(time.monotonic() - started, 3)})
    return found


if __name__ == "__main__":
    main()
