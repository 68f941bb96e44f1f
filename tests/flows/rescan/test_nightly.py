"""Rescans of models whose evidence was computed once, for real, by the same code that examines in production."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.gate.client import gate
from flows.gate.question import SECOND, Question
from flows.production.reconcile import reconcile
from flows.production.watch import watch
from flows.rescan.canaries import BACKDOORED, CLEAN, canaries
from flows.rescan.nightly import exit_code, rescan
from flows.rescan.stale import NIGHTS, Present, due_for_hashing
from tasks.records.attestations import newest_attestation
from tasks.records.ledger_chain import Entry, entries
from tasks.records.ledger_state import ledger_state
from tasks.records.ledger_verify import verify_ledger
from tasks.records.rescans import last_rescan
from tasks.settings import Settings, location
from tasks.vetting import intake
from tests import steady
from tests.databases import with_fixed_seeds
from tests.production import NOW, Home, home_in
from vetgate.errors import BadSubmission, StoreError
from vetgate.trust.keys import load_or_create_key, read_trust_root, utc_now

FORK = multiprocessing.get_context("fork")
# the first batch of today, and of tomorrow where midnight is near
BATCHES = sorted({f"{moment.date().isoformat()}-1" for moment in (NOW, NOW + timedelta(hours=1))})
EXAMINING = """
import json, sys
from flows.rescan.local import cool, examine_locally
from tasks.settings import load_settings
settings = load_settings()
done = [[*item, examine_locally(settings, *item).to_json()] for item in json.load(sys.stdin)]
cool()
print(json.dumps(done), file=open(sys.argv[1], "w"))
"""


@dataclass(frozen=True)
class Base:
    """A home that holds the evidence on a few submissions, and what the gate is asked to judge of each."""

    home: Path
    settled: dict[str, str]
    honest: str
    trojaned: str
    requests: dict[tuple[str, str], Question]

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a command in a home with these settings."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VETGATE_", "PREFECT_", "MLFLOW_"))}
        return inherited | steady.environment(self.settled, home)

    def examine(self, settings: Settings, manifest: str, run: str) -> Question:
        """What was found for a submission under the name of a run."""
        return self.requests[manifest, run]


def named(directory: Path, room: Path) -> Path:
    """A copy of a submission under the name `digits`."""
    copy = shutil.copytree(directory, room / directory.parent.name)
    described = yaml.safe_load((copy / "submission.yaml").read_text())
    (copy / "submission.yaml").write_text(yaml.safe_dump(described | {"name": "digits"}))
    return copy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, honest: Path, trojaned: Path) -> Base:
    room = tmp_path_factory.mktemp("rescan")
    settled = steady.build(room / "steady")
    home = home_in(room, **settled)
    with_fixed_seeds(home.settings.home)
    # a key that was valid when the oldest verdict of these tests was signed
    load_or_create_key(home.settings.gate_key, home.settings.trust_root, now=NOW - timedelta(days=90))
    good, bad = (intake.take(home.settings, named(directory, room)).id for directory in (honest, trojaned))
    flock = [canary.manifest for canary in canaries(home.settings)]
    wanted = [(good, ""), (bad, ""), (bad, SECOND), *((m, f"canary {batch}") for m in flock for batch in BATCHES)]
    made = Base(home.settings.home, settled, good, bad, {})
    out = room / "requests.json"
    subprocess.run(
        [sys.executable, "-c", EXAMINING, str(out)],
        env=made.environment(made.home),
        input=json.dumps(wanted),
        text=True,
        check=True,
        timeout=540,
    )
    made.requests.update({(m, run): Question.from_json(blob) for m, run, blob in json.loads(out.read_text())})
    return made


@pytest.fixture
def home(tmp_path: Path, base: Base) -> Iterator[Home]:
    for part in ("store", "keys", "canaries", "data", "data-remote", "data-cache", "splits"):
        if (base.home / part).exists():
            shutil.copytree(base.home / part, tmp_path / "home" / part, symlinks=True)
    home = home_in(tmp_path, **base.settled)
    yield home
    gate(home.settings).close()


def pinned(home: Home, manifest: str, at: datetime) -> dict[str, Any]:
    """What an attestation says that was made with everything as it is now."""
    pins = Present.of(watch(home.settings)).pins(intake.read_record(home.store, manifest).submission)
    methods = [{"name": name, "code": pin.code, "params": dict(pin.params)} for name, pin in pins.methods.items()]
    return {
        "issued": at,
        "methods": methods,
        "calibration": {"id": pins.calibration},
        "reference_data": pins.data,
    }


def under(home: Home, **said: int) -> Home:
    """The same home under a policy that says something else of rescans."""
    policy = home.room / "policy.yaml"
    others = "".join(f", {key}: {value}" for key, value in said.items())
    policy.write_text(steady.POLICY.replace(steady.RATE, steady.RATE + others))
    return Home(home.settings.model_copy(update={"policy": policy}), home.room)


def examine_nothing(settings: Settings, manifest: str, run: str) -> Question:
    raise AssertionError("nothing was to be examined")


def entered(home: Home, kind: str) -> list[Entry]:
    """The entries of one kind in the ledger, which is whole."""
    verify_ledger(home.settings)
    return [entry for entry in entries(home.store) if entry.kind == kind]


def verdict(home: Home, manifest: str) -> dict[str, Any]:
    newest = newest_attestation(ledger_state(home.settings), manifest)
    assert newest is not None
    return newest.claims


def test_a_verdict_that_is_up_to_date_costs_a_comparison(home: Home, base: Base) -> None:
    home.let_in(base.honest, **pinned(home, base.honest, NOW - timedelta(days=1)))
    blob = rescan(home.settings, examine_nothing, now=utc_now())
    assert (blob["checked"], blob["unchanged"], blob["stale"], blob["canaries"]) == (1, 1, 0, [])
    assert (blob["verdict"], exit_code(blob), entered(home, "rescan")) == ("DONE", 0, [])
    assert last_rescan(home.store, read_trust_root(home.settings.trust_root), pytest.fail) == blob


def test_an_old_verdict_is_renewed_from_the_recorded_seed(home: Home, base: Base) -> None:
    home.let_in(base.honest, **pinned(home, base.honest, NOW - timedelta(days=21)))
    blob = rescan(home.settings, base.examine, now=utc_now())
    (renewed,) = blob["vetted"]
    assert (renewed["decision"], renewed["second"], exit_code(blob)) == ("PASS", False, 0)
    assert [(canary["canary"], canary["decision"]) for canary in blob["canaries"]] == [
        (BACKDOORED, "FAIL"),
        (CLEAN, "PASS"),
    ]
    said = verdict(home, base.honest)
    assert (said["verdict"], said["purpose"]) == ("PASS", "rescan")
    seed = intake.seed_of(home.settings, intake.read_record(home.store, base.honest))
    assert {method["seed_commitment"] for method in said["methods"]} == {seed.commitment}
    assert said["guards"]["chosen"], "what serves it keeps its guards"
    (entry,) = entered(home, "rescan")
    assert entry.subject["vetted"]["PASS"] == [base.honest]
    assert rescan(home.settings, examine_nothing, now=utc_now())["stale"] == 0
    assert home.aliases() == {"champion": "1"}


def test_what_guards_reject_has_the_one_name_vetted_again_though_nothing_is_out_of_date(home: Home, base: Base) -> None:
    home.let_in(base.honest, **pinned(home, base.honest, NOW - timedelta(days=2)))
    blob = rescan(home.settings, base.examine, "digits", now=utc_now())
    assert [(item["manifest"], item["decision"]) for item in blob["vetted"]] == [(base.honest, "PASS")]
    said = verdict(home, base.honest)
    assert said["purpose"] == "rescan"
    # once a day, however often its callers send what is rejected
    assert rescan(home.settings, examine_nothing, "digits", now=utc_now())["stale"] == 0
    assert rescan(home.settings, examine_nothing, "other", now=utc_now())["checked"] == 0
    with pytest.raises(BadSubmission, match="expected as name"):
        rescan(home.settings, examine_nothing, "../digits", now=utc_now())


def bad_champion(home: Home, base: Base) -> None:
    """A champion with a backdoor that a weaker detector let pass, after an honest one."""
    home.let_in(base.honest, **pinned(home, base.honest, NOW - timedelta(days=1)))
    home.let_in(base.trojaned, issued=NOW - timedelta(days=1))


def test_a_fail_that_a_second_run_confirms_goes_back_to_the_version_before(home: Home, base: Base) -> None:
    bad_champion(home, base)
    blob = rescan(home.settings, base.examine, now=utc_now())
    (failed,) = blob["vetted"]
    assert (failed["decision"], failed["second"], exit_code(blob)) == ("FAIL", True, 1)
    assert [(d["kind"], d["version"], d["to"]) for d in blob["taken_back"]] == [("demotion", "2", "1")]
    assert home.aliases() == {"champion": "1", "previous": "1"}
    assert verdict(home, base.trojaned)["second"]["decision"] == "FAIL"
    assert len(entered(home, "demotion")) == 1
    assert rescan(home.settings, examine_nothing, now=utc_now())["taken_back"] == []


def test_a_fail_that_the_second_run_does_not_confirm_changes_nothing(home: Home, base: Base) -> None:
    bad_champion(home, base)

    def interrupted(settings: Settings, manifest: str, run: str) -> Question:
        found = base.examine(settings, manifest, run)
        return replace(found, evidence={}, failures={"neural_cleanse": "timed out"}) if run == SECOND else found

    blob = rescan(home.settings, interrupted, now=utc_now())
    assert [(item["decision"], item["attestation"]) for item in blob["vetted"]] == [("INCONCLUSIVE", None)]
    assert (home.aliases()["champion"], verdict(home, base.trojaned)["verdict"]) == ("2", "PASS")
    assert (blob["taken_back"], exit_code(blob)) == ([], 0)


def test_a_fail_stays_for_the_grace_of_the_policy_and_goes_when_it_is_over(home: Home, base: Base) -> None:
    patient = under(home, grace_hours=2)
    bad_champion(patient, base)
    blob = rescan(patient.settings, base.examine, now=utc_now())
    assert (blob["vetted"][-1]["decision"], blob["taken_back"], exit_code(blob)) == ("FAIL", [], 0)
    assert patient.aliases()["champion"] == "2"
    assert rescan(patient.settings, examine_nothing, now=utc_now())["stale"] == 0
    assert reconcile(patient.settings)["grace"][0]["version"] == "2"
    (done,) = reconcile(patient.settings, now=NOW + timedelta(hours=3))["taken_back"]
    assert (done["kind"], done["to"]) == ("demotion", "1")
    gate(patient.settings).close()


def other_label(trained: Path) -> None:
    (trained / "target.json").write_text("3")


def swapped(trained: Path) -> None:
    for source, target in ((CLEAN, "aside"), (BACKDOORED, CLEAN), ("aside", BACKDOORED)):
        (trained / source).rename(trained / target)


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (other_label, ["canary-backdoored failed for [7], expected label 3", None]),
        (swapped, ["canary-backdoored came out PASS, expected FAIL for label 7", "canary-clean came out FAIL"]),
    ],
)
def test_a_canary_that_comes_out_wrong_decides_nothing(
    home: Home, base: Base, spoil: Callable[[Path], None], wrong: list[str | None]
) -> None:
    home.let_in(base.honest, issued=NOW - timedelta(days=1))
    home.let_in(base.trojaned, issued=NOW - timedelta(days=1))
    spoil(home.settings.home / "canaries" / "trained")
    blob = rescan(home.settings, base.examine, now=utc_now())
    assert (blob["verdict"], exit_code(blob)) == ("INCONCLUSIVE", 3)
    assert [canary["wrong"] for canary in blob["canaries"]] == wrong
    assert (blob["vetted"], blob["taken_back"]) == ([], [])
    assert [verdict(home, m)["purpose"] for m in (base.honest, base.trojaned)] == ["submission"] * 2
    assert home.aliases() == {"champion": "2", "previous": "1"}
    (entry,) = entered(home, "rescan")
    assert entry.subject["verdict"] == "INCONCLUSIVE"


def test_a_canary_that_cannot_be_examined_is_wrong(home: Home, base: Base) -> None:
    home.let_in(base.honest)

    def broken(settings: Settings, manifest: str, run: str) -> Question:
        raise StoreError("no worker")

    assert exit_code(rescan(home.settings, broken, now=utc_now())) == 3


def test_what_cannot_be_examined_is_an_error_and_stays(home: Home, base: Base) -> None:
    bad_champion(home, base)

    def away(settings: Settings, manifest: str, run: str) -> Question:
        if manifest == base.trojaned:
            raise StoreError("the worker died")
        return base.examine(settings, manifest, run)

    blob = rescan(home.settings, away, now=utc_now())
    assert (exit_code(blob), len(blob["errors"]), home.aliases()["champion"]) == (2, 1, "2")
    assert verdict(home, base.trojaned)["purpose"] == "submission"


def test_every_manifest_has_one_night_in_thirty() -> None:
    for manifest in ("0" * 64, "f" * 64, "1234567" + "8" * 57):
        nights = [due_for_hashing(manifest, NOW + timedelta(days=day)) for day in range(2 * NIGHTS)]
        assert sum(nights) == 2 and nights.index(True) + NIGHTS == len(nights) - 1 - nights[::-1].index(True)


def test_altered_bytes_are_taken_back_on_the_night_they_are_hashed(home: Home, base: Base) -> None:
    # a verdict must not go out of date before the night on which its model is due
    home = under(home, max_age_days=2 * NIGHTS)
    today = utc_now()
    (night,) = (today + timedelta(day) for day in range(NIGHTS) if due_for_hashing(base.honest, today + timedelta(day)))
    home.let_in(base.honest, valid=timedelta(days=90), **pinned(home, base.honest, today - timedelta(minutes=1)))
    assert rescan(home.settings, examine_nothing, now=night)["hashed"] == 1
    with_bytes = home.aliases()
    (source,) = (held.source for held in _held(home))
    path = Path(location(source), "model.safetensors")
    path.chmod(0o644)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert rescan(home.settings, examine_nothing, now=night + timedelta(days=1))["taken_back"] == []
    assert home.aliases() == with_bytes
    blob = rescan(home.settings, examine_nothing, now=night)
    assert [(d["kind"], d["to"]) for d in blob["taken_back"]] == [("bypass", None)]
    assert (home.aliases(), exit_code(blob), len(entered(home, "bypass"))) == ({}, 1, 1)


def _held(home: Home) -> list[Any]:
    from tasks.mlflow.aliases import in_production

    return in_production(home.settings)


def test_killed_after_any_step_it_ends_the_same_and_demotes_once(home: Home, base: Base) -> None:
    bad_champion(home, base)
    for step in ("compared", "hashed", "canaries vetted", f"vetted {base.trojaned}", "demoted"):
        child = FORK.Process(target=die_after, args=(step, home.settings, base))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL, step
    assert rescan(home.settings, base.examine, now=utc_now())["errors"] == []
    assert home.aliases() == {"champion": "1", "previous": "1"}
    assert len(entered(home, "demotion")) == 1
    assert [e.subject["verdict"] for e in entered(home, "verdict") if e.subject["purpose"] == "rescan"] == ["FAIL"]


def die_after(step: str, settings: Settings, base: Base) -> None:
    def after(done: str) -> None:
        if done == step:
            gate(settings).close()
            os.kill(os.getpid(), signal.SIGKILL)

    rescan(settings, base.examine, now=utc_now(), on_step=after)


def test_two_batches_at_once_are_one(home: Home, base: Base) -> None:
    home.let_in(base.honest, issued=NOW - timedelta(days=1))

    def meanwhile(settings: Settings, manifest: str, run: str) -> Question:
        with pytest.raises(StoreError, match="at work"):
            rescan(settings, examine_nothing, now=utc_now())
        return base.examine(settings, manifest, run)

    assert len(rescan(home.settings, meanwhile, now=utc_now())["vetted"]) == 1


@pytest.mark.slow
def test_the_command_killed_in_the_middle_redoes_no_finished_method(home: Home, base: Base) -> None:
    """The whole of it: `vetgate rescan` with its own server, sandbox and gate, killed once it has found something."""
    home.let_in(base.honest, issued=NOW - timedelta(days=1))
    shutil.rmtree(Path(home.settings.store, "evidence"))
    shutil.rmtree(Path(home.settings.store, "invocations"))
    environment = base.environment(home.settings.home)
    command = [
        sys.executable,
        "-c",
        "from flows.cli.commands import main; raise SystemExit(main())",
        "rescan",
        "--json",
    ]
    until = time.monotonic() + 300
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not list(home.store.list("evidence/")) and time.monotonic() < until:
        assert first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    finished = set(home.store.list("evidence/"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    blob = json.loads(done.stdout)
    assert (done.returncode, blob["errors"]) == (0, []), done.stderr
    assert [item["decision"] for item in blob["vetted"]] == ["PASS"]
    runs: dict[str, int] = {}
    for key in home.store.list("invocations/"):
        about = key.removeprefix("invocations/").rpartition("/")[0]
        runs[about] = runs.get(about, 0) + 1
    assert finished and all(runs[key.removeprefix("evidence/").rpartition("-")[0]] == 1 for key in finished)
