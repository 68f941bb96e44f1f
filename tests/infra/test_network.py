"""Between the zones only those ways are open that a process needs."""

from __future__ import annotations

import pytest

from tests.infra.kustomize import manifests
from tests.infra.network import of, outside, pods, reaches
from vetgate.shape import Blob

VET, VET_ONE = ("vetgate-vet", "vet-worker"), ("vetgate-vet", "vet-one")
GATE, GATE_WORKER = ("vetgate-gate", "gate-service"), ("vetgate-gate", "gate-worker")
RECEIVER, MODEL = ("vetgate-intake", "receiver"), ("vetgate-serving", "model")
PREFECT, SERVICES = ("vetgate-servers", "prefect-server"), ("vetgate-servers", "prefect-services")
MLFLOW, VALKEY, POSTGRES = ("vetgate-servers", "mlflow"), ("vetgate-servers", "valkey"), ("vetgate-servers", "postgres")
WAYS = {
    (VET, PREFECT, 4200), (VET, MLFLOW, 5000), (VET, GATE, 8481),
    (VET_ONE, PREFECT, 4200), (VET_ONE, MLFLOW, 5000), (VET_ONE, GATE, 8481),
    (GATE, PREFECT, 4200), (GATE, MLFLOW, 5000),
    (GATE_WORKER, PREFECT, 4200), (GATE_WORKER, MLFLOW, 5000), (GATE_WORKER, GATE, 8481),
    (RECEIVER, PREFECT, 4200), (RECEIVER, MLFLOW, 5000),
    (MLFLOW, RECEIVER, 8480), (MLFLOW, GATE, 8481),
    (PREFECT, VALKEY, 6379), (SERVICES, VALKEY, 6379),
    (MODEL, MLFLOW, 5000),
}  # fmt: skip
DATABASE = {(PREFECT, POSTGRES, 5432), (SERVICES, POSTGRES, 5432), (MLFLOW, POSTGRES, 5432)}
TO_S3 = {VET, VET_ONE, GATE, GATE_WORKER, MLFLOW, MODEL}


@pytest.fixture(scope="module", params=("dev", "prod"))
def rendered(request: pytest.FixtureRequest) -> list[Blob]:
    return manifests(f"overlays/{request.param}")


def _policy(blobs: list[Blob], name: str) -> Blob:
    return next(policy for policy in of(blobs, "NetworkPolicy") if policy["metadata"]["name"] == name)


def test_pods_reach_the_pods_they_need_and_no_others(rendered: list[Blob]):
    every = pods(rendered)
    wanted = WAYS | (DATABASE if POSTGRES in every else set())
    ports = {4200, 5000, 5432, 6379, 8000, 8080, 8480, 8481}
    open_ways = {
        (a, b, port) for a in every for b in every for port in ports if a != b and reaches(rendered, a, b, port)
    }
    assert open_ways == wanted


def test_a_way_that_was_opened_is_found():
    blobs = manifests("overlays/dev")
    assert not reaches(blobs, VET, POSTGRES, 5432)
    _policy(blobs, "vetting")["spec"]["egress"].append({})
    assert not reaches(blobs, VET, POSTGRES, 5432)
    _policy(blobs, "postgres")["spec"]["ingress"].append({})
    assert reaches(blobs, VET, POSTGRES, 5432)


def test_only_those_that_keep_something_in_s3_reach_out_of_the_cluster(rendered: list[Blob]):
    assert {pod for pod in pods(rendered) if outside(rendered, pod, "203.0.113.7/32", 443)} == TO_S3
    assert not any(
        outside(rendered, pod, address, 443)
        for pod in pods(rendered)
        for address in ("10.1.2.3/32", "169.254.169.254/32")
    )
    assert not any(outside(rendered, pod, "203.0.113.7/32", 22) for pod in pods(rendered))
