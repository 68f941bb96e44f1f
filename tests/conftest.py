"""What tests of more than one folder share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import models, quick
from tests.system import pytest_report_header, pytest_terminal_summary
from vetgate.contract import Samples

# hooks: what the suite needs of the system is named by every run of it
__all__ = ["pytest_report_header", "pytest_terminal_summary"]

# how many threads share a sum decides its last bits, and workers that run beside each other share the cores: threads
# spin while they wait for one that has no core, and a child with two of them spent six times the processor time
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

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
LONG = ("test_killed", "test_rescan", "test_hosts", "test_killed_service", "test_nightly", "test_postgres")
# what uses the service of tests/service/conftest.py; it waits for half of the time
SERVICE = "the service"
# what uses the one command line of tests/flows/conftest.py, whose process takes long to start
COMMAND_LINE = ("test_bad_input", "test_cli", "test_vet")
# files that take longest; where tests run in parallel these are begun first, so that none is waited for at the end
LONGEST = (
    "test_calibrate",
    "test_bench",
    "test_demo",
    "test_conformance",
    "test_data",
    "test_promote",
    "test_spread",
    "test_anywhere",
)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what takes long."""
    if item.path.stem in LONG:
        item.add_marker(pytest.mark.long)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""

    def rank(item: pytest.Item) -> int:
        group, stem = _group(str(item.path)), item.path.stem
        return 0 if group == SERVICE else 1 if group is not None else 2 if stem in LONGEST else 3

    items.sort(key=rank)


def _group(file: str) -> str | None:
    """What the tests of a file share with those of others, so that all of them run in one process."""
    if "tests/service/" in file:
        return SERVICE
    return "the command line" if Path(file).stem in COMMAND_LINE else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """In parallel a file runs in one process, and so does all that uses the one service or the one command line."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return _group(file) or file

    return Scheduling(config, log)


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
