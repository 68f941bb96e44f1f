"""`mlflow models serve` serves the registered model behind its guards over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import torch
from torch import Tensor

from flows.production.guarded import guarded_load
from flows.production.predictions import prediction
from tasks.mlflow.client import ENVIRONMENT
from tests.flows.production.test_guarded import CHAMPION, NAMES, SHAPE, Production
from tests.production import home_in
from tests.service.running import free_ports

ROOT = Path(__file__).parents[3]


@contextmanager
def mlflow_serves(
    production: Production, model: str, log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """MLflow's own server of a model, as a user starts it, which knows nothing of ours but the public keys."""
    port = free_ports(1)[0]
    own = {k: v for k, v in os.environ.items() if not k.startswith(("VETGATE_", "PREFECT_", "MLFLOW_"))}
    own |= ENVIRONMENT | {
        "MLFLOW_TRACKING_URI": production.settings.tracking_uri,
        "VETGATE_TRUST_ROOT": str(production.settings.trust_root),
        "PYTHONPATH": str(ROOT),
        # what the shell that it starts finds
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    line = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local", "-p", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(line, env=own, stdout=output, stderr=output, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield process, client
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def up(process: subprocess.Popen[bytes], client: httpx.Client, seconds: float = 120) -> bool:
    """Whether it answers before it ends."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        try:
            return client.get("/ping").status_code == 200
        except httpx.HTTPError:
            time.sleep(0.2)
    return False


def malformed(x: Tensor) -> list[str]:
    """Requests that ask about no images."""
    blank = json.dumps({"inputs": (x[:1] * 0).tolist()})
    pixels = ("NaN", "-Infinity", "1e999", "1" + "0" * 400, "null", '"a"', "[0.0]")
    return [
        "",
        "\x00",
        json.dumps({"images": 1}),
        json.dumps({"inputs": []}),
        json.dumps({"inputs": x[0].tolist()}),
        json.dumps({"inputs": (x * 255).tolist()}),
        *(blank.replace("0.0", pixel, 1) for pixel in pixels),
    ]


def test_it_serves_the_registered_model_behind_its_guards(tmp_path: Path) -> None:
    torch.manual_seed(1)
    production = Production(home_in(tmp_path))
    production.guarded()
    x = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(3))
    expected = [prediction(answer, NAMES) for answer in guarded_load(CHAMPION, production.settings).guarded.predict(x)]
    log = tmp_path / "log"
    with mlflow_serves(production, "models:/guarded.digits@champion", log) as (process, client):
        assert up(process, client), log.read_text()
        for asked in ({"inputs": x.tolist()}, {"instances": x.tolist()}):
            answered = client.post("/invocations", json=asked)
            assert answered.status_code == 200, answered.text
            assert answered.json()["predictions"] == expected
        frame = {"columns": ["image"], "data": [[image] for image in x.tolist()]}
        assert client.post("/invocations", json={"dataframe_split": frame}).json()["predictions"] == expected
        for wrong in malformed(x):
            refused = client.post("/invocations", content=wrong, headers={"content-type": "application/json"})
            assert refused.status_code == 400 and "Traceback" not in refused.text, wrong[:100]
        many = client.post("/invocations", json={"inputs": x.tolist() * 100})
        assert many.json()["predictions"] == expected * 100
        assert client.post("/invocations", json={"inputs": x.tolist()}).json()["predictions"] == expected
