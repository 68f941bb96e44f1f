"""What tests of more than one folder share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import models, quick
from vetgate.contract import Samples

# moto looks a key up and then writes it, two steps; S3 takes them as one, so requests are served one at a time
SERVER = """
import sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
print(server.port, flush=True)
server.serve_forever()
"""


# minutes that a change need not wait for: `make test-long`
LONG = (
    "tests/flows/test_killed.py",
    "tests/flows/test_rescan.py",
    *(f"tests/service/test_{name}.py" for name in ("hosts", "killed_service", "nightly", "postgres")),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long; the whole service comes last, because it takes the machine for itself."""
    for item in items:
        if item.nodeid.startswith(LONG):
            item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: item.nodeid.startswith("tests/service/"))


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a fast but real installation; its references are trained once a session."""
    return quick.build(tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="session")
def installation_with_promotion(
    installation: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The same, with a policy that promotes what passed without anybody asking."""
    policy = tmp_path_factory.mktemp("promotion") / "policy.yaml"
    policy.write_text(f"{quick.POLICY}promotion: {{automatic: champion}}\n")
    return {**installation, "VETGATE_POLICY": str(policy)}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return models.read_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory, digits: Samples) -> Path:
    return models.honest_submission(tmp_path_factory.mktemp("honest") / "model", digits)


@pytest.fixture(scope="session")
def trojaned(tmp_path_factory: pytest.TempPathFactory, digits: Samples) -> Path:
    return models.trojaned_submission(tmp_path_factory.mktemp("trojaned") / "model", digits)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an S3 server with a bucket called `vetgate`; AWS credentials are set for the session."""
    aws = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    before = {name: os.environ.get(name) for name in aws}
    os.environ.update(aws)
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        import boto3

        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="vetgate")
        yield endpoint
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
