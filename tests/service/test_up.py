"""The service comes up by itself, keeps its parts running, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from tests.service.running import (
    OWN,
    PORTS,
    Service,
    assert_nothing_left,
    free_ports,
    left_of,
    tail,
    until_true,
)

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"prefect", "vet pool", "gate pool", "mlflow", "receiver", "gate", "store"}
PARTS |= {"prefect database", "mlflow database"}


def test_every_part_says_that_it_is_healthy(service: Service) -> None:
    done = service.check()

    assert done.returncode == 0, done.stdout + tail(service.log)
    said = json.loads(done.stdout)
    assert said["healthy"] and {part["part"] for part in said["parts"]} == PARTS


def test_all_deployments_are_on_the_server_with_their_triggers_and_schedules(service: Service) -> None:
    listed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]

    found = {entry["entrypoint"]: entry for entry in post(service, "deployments/filter")}
    assert set(found) == {entry["entrypoint"] for entry in listed}
    for entry in listed:
        there = found[entry["entrypoint"]]
        assert there["work_pool_name"] == entry["work_pool"]["name"]
        assert {s["slug"] for s in there["schedules"]} == {s["slug"] for s in entry.get("schedules", [])}
        assert there["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    triggers = {t["name"] for entry in listed for t in entry.get("triggers", [])}
    assert {automation["name"] for automation in post(service, "automations/filter")} == triggers


def test_what_is_scheduled_gets_runs(service: Service) -> None:
    def scheduled() -> bool:
        runs = post(service, "flow_runs/filter", {"flow_runs": {"tags": {"all_": ["auto-scheduled"]}}})
        return len(runs) > 1

    until_true(scheduled, 60, lambda: tail(service.log))


def told(service: Service, part: str) -> dict[str, str]:
    """The environment of a part."""
    words = Path(f"/proc/{service.pid(part)}/environ").read_bytes().split(b"\0")
    return dict(word.decode().split("=", 1) for word in words if b"=" in word)


def test_no_worker_of_the_vet_pool_is_told_where_the_gates_key_is(service: Service) -> None:
    vetting, gate = told(service, "vet-worker"), told(service, "gate-worker")
    assert Path(gate["VETGATE_GATE_KEY"]).parent == service.home / "keys"
    # no directory: no key is there, and none can be made there
    for other in (vetting, told(service, "receiver"), told(service, "mlflow"), told(service, "prefect")):
        assert not Path(other["VETGATE_GATE_KEY"]).parent.is_dir()
    assert vetting["VETGATE_GATE_URL"] == service.about["gate"]


def test_what_evidence_is_signed_with_and_drawn_from_is_told_to_those_who_need_it(service: Service) -> None:
    keys = service.home / "keys"
    for name in ("VETGATE_VETTER_KEY", "VETGATE_SEED_SECRET"):
        given = Path(told(service, "vet-worker")[name])
        assert given.parent == keys and given.exists()
    assert Path(told(service, "gate")["VETGATE_SEED_SECRET"]).parent == keys
    withheld = {part: ("VETTER_KEY", "SEED_SECRET") for part in ("gate-worker", "receiver", "mlflow", "prefect")}
    for part, names in {**withheld, "gate": ("VETTER_KEY",)}.items():
        assert not any(Path(told(service, part)[f"VETGATE_{name}"]).parent.is_dir() for name in names), part


def test_a_second_service_in_the_same_home_is_refused(service: Service) -> None:
    done = service.run(sys.executable, "-m", "flows.cli.service", "up", "--json")

    assert done.returncode == 2 and "running" in json.loads(done.stdout)["error"]


def test_a_port_that_is_taken_is_said_before_anything_is_started(tmp_path: Path, service: Service) -> None:
    port = service.given["VETGATE_GATE_PORT"]
    own = service.given | {"VETGATE_HOME": str(tmp_path), "VETGATE_GATE_PORT": port}
    own |= {f"VETGATE_{name}_PORT": str(free_ports(1)[0]) for name in ("PREFECT", "MLFLOW", "RECEIVER")}
    line = [sys.executable, "-m", "flows.cli.service", "up", "--json"]
    done = subprocess.run(line, env=own, capture_output=True, text=True, timeout=60)

    assert done.returncode == 2 and "VETGATE_GATE_PORT" in json.loads(done.stdout)["error"]


def test_parts_that_were_killed_come_back_and_no_run_of_theirs_stays_running(service: Service) -> None:
    others = {name: service.pid(name) for name in ("mlflow", "gate-worker")}
    deployment = httpx.get(f"{service.about['prefect']}/deployments/name/take-registered/default", timeout=30).json()
    what = {"parameters": {"model": "thirdparty.nobody", "version": "1"}, "state": {"type": "SCHEDULED"}}
    asked = f"{service.about['prefect']}/deployments/{deployment['id']}/create_flow_run"
    run = httpx.post(asked, json=what, timeout=30).raise_for_status().json()
    # the worker's note that it has begun
    notes = service.home / "run" / "vet-runs"
    until_true(lambda: any(notes.glob(f"*/{run['id']}")), 120, lambda: tail(service.log))
    killed = {part: service.kill(part) for part in ("vet-worker", "prefect", "receiver", "gate")}

    until_true(lambda: all(service.pid(part) != killed[part] for part in killed), 60, lambda: tail(service.log))
    service.until_healthy()
    assert {name: service.pid(name) for name in others} == others
    assert not any(Path(f"/proc/{pid}").exists() for pid in killed.values())

    def state() -> str:
        return str(httpx.get(f"{service.about['prefect']}/flow_runs/{run['id']}", timeout=30).json()["state_type"])

    # the pool counts as healthy by the last word of the worker that was killed
    until_true(lambda: state() == "CRASHED", 60, lambda: f"{state()}\n{tail(service.log)}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 0)])
def test_a_service_that_is_ended_while_it_comes_up_leaves_nothing(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    home = tmp_path / "home"
    own = {k: v for k, v in os.environ.items() if not k.startswith(OWN)}
    own |= {f"VETGATE_{name}_PORT": str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}
    line = [sys.executable, "-m", "flows.cli.service", "up"]
    process = subprocess.Popen(
        line, env=own | {"VETGATE_HOME": str(home)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until_true(lambda: len(list((home / "run").glob("*.pid"))) == 6, 60, lambda: str(left_of(home)))
        assert len(left_of(home)) > 12
    finally:
        process.send_signal(number)
        assert process.wait(30) == code
        assert_nothing_left(home)


def post(service: Service, path: str, what: object = None) -> list[dict[str, object]]:
    answer = httpx.post(f"{service.about['prefect']}/{path}", json=what or {}, timeout=30)
    answer.raise_for_status()
    return list(answer.json())
