"""The manifests fit Kubernetes' schemas, keep to restricted pods, and open no way that a zone must not have."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tasks.settings import Settings
from tests.infra.known import command_problems, unknown_settings
from tests.infra.kustomize import HERE, containers, identity, manifests, pod_of
from tests.infra.network import fits, match_labels, of, space_of
from vetgate.shape import Blob

OVERLAYS = ("dev", "prod")
VERSION = "1.32"
ZONES = {f"vetgate-{zone}" for zone in ("intake", "vet", "gate", "servers", "serving")}
SERVERS = {"receiver", "gate-service", "prefect-server", "mlflow", "valkey", "vet-worker", "gate-worker"}
# which workloads hold a secret that decides what is believed: all of these, and no others
HOLDERS = {
    "gate-key": {"gate-service", "gate-worker"},
    "vetter-key": {"vet-worker", "vet-one"},
    "seed-secret": {"vet-worker", "vet-one", "gate-service"},
}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY$|AUTH_STRING|CONNECTION_URL|BACKEND_STORE_URI|DOCKET_URL")


def problems(blobs: list[Blob]) -> list[str]:
    """Every rule of ours that rendered manifests break."""
    found = [f"{'/'.join(identity(blob)[1:])}: {problem}" for blob in blobs for problem in _resource(blob, blobs)]
    spaces = {blob["metadata"]["name"]: blob for blob in of(blobs, "Namespace")}
    found += [f"no namespace {name}" for name in sorted(ZONES - set(spaces))]
    for name, space in spaces.items():
        labels = space["metadata"].get("labels", {})
        if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            found.append(f"{name} enforces no restricted pods")
        if not any(_denies_everything(policy) for policy in of(blobs, "NetworkPolicy") if space_of(policy) == name):
            found.append(f"{name} denies nothing by default")
    return found


def _resource(blob: Blob, blobs: list[Blob]) -> Iterator[str]:
    kind, name = blob["kind"], blob["metadata"]["name"]
    if kind == "Secret":
        yield "holds a secret, which has no place in a repository"
    if kind == "ConfigMap":
        yield from unknown_settings(blob["data"])
        yield from (
            f"{key} looks like a secret" for key, value in blob["data"].items() if re.search(r"://[^/]*:[^/]*@", value)
        )
    if kind not in ("Namespace", "RuntimeClass") and blob["metadata"].get("namespace") not in ZONES:
        yield "is in none of our namespaces"
    if kind == "ServiceAccount" and blob.get("automountServiceAccountToken") is not False:
        yield "hands out its token"
    if kind == "Service" and "selector" in blob["spec"] and not _selected(blob, blobs):
        yield "selects no workload"
    if kind == "PodDisruptionBudget" and blob["spec"].get("maxUnavailable") != 1:
        yield "would hold up a drained node for ever, or hold nothing up"
    template = pod_of(blob)
    if template is None:
        return
    yield from _pod(template["spec"], space_of(blob), blobs)
    if kind in ("Deployment", "StatefulSet"):
        asked = [{"livenessProbe", "readinessProbe"} <= set(c) for c in template["spec"]["containers"]]
        yield from ("is not probed" for probed in asked if not probed)
    if name in SERVERS:
        budgets = [
            match_labels(b["spec"]["selector"])
            for b in of(blobs, "PodDisruptionBudget")
            if space_of(b) == space_of(blob)
        ]
        if not any(fits(template["metadata"]["labels"], wanted) for wanted in budgets):
            yield "has no disruption budget"
    for container in containers(blob):
        yield from (f"{container['name']}: {problem}" for problem in _container(container))
    mounted = {volume["secret"]["secretName"] for volume in template["spec"].get("volumes", []) if "secret" in volume}
    for secret, holders in HOLDERS.items():
        if (secret in mounted) != (name in holders):
            yield f"{'holds' if secret in mounted else 'lacks'} {secret}"


def _pod(spec: Blob, space: str, blobs: list[Blob]) -> Iterator[str]:
    accounts = {b["metadata"]["name"] for b in of(blobs, "ServiceAccount") if space_of(b) == space}
    if spec.get("serviceAccountName") not in accounts or spec.get("automountServiceAccountToken") is not False:
        yield "runs under no account of its zone, or holds its token"
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 0) == 0:
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if spec.get("hostNetwork") or spec.get("hostPID") or spec.get("hostIPC"):
        yield "shares something of the node"
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield "mounts the node's files"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} has no limit"
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        names = {mount["name"] for mount in container.get("volumeMounts", [])}
        yield from (
            f"{container['name']} mounts {name}, which is no volume" for name in sorted(names - volumes - {"data"})
        )


def _container(container: Blob) -> Iterator[str]:
    image = container["image"]
    if not re.search(r":(?!latest)[\w.-]*\d|@sha256:", image):
        yield f"image {image} is not pinned"
    context = container.get("securityContext", {})
    wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    yield from (f"{key} is not {value}" for key, value in wanted.items() if context.get(key) != value)
    if context.get("privileged"):
        yield "is privileged"
    limits = container.get("resources", {}).get("limits", {})
    yield from (f"has no limit of {what}" for what in ("cpu", "memory") if what not in limits)
    for item in container.get("env", []):
        value = item.get("value")
        if (
            value is not None
            and SECRET.search(item["name"])
            and not value.startswith("/run/secrets/")
            and not value.startswith("/run/keys/")
        ):
            yield f"{item['name']} is written out"
    yield from unknown_settings(item["name"] for item in container.get("env", []))
    if "command" in container:
        yield from command_problems(container["command"])


def _denies_everything(policy: Blob) -> bool:
    spec = policy["spec"]
    ways = spec.get("ingress") or spec.get("egress")
    return spec["podSelector"] == {} and set(spec["policyTypes"]) == {"Ingress", "Egress"} and not ways


def _selected(service: Blob, blobs: list[Blob]) -> bool:
    ports = {port["targetPort"] for port in service["spec"]["ports"]}
    for blob in blobs:
        template = pod_of(blob)
        if (
            template
            and space_of(blob) == space_of(service)
            and fits(template["metadata"]["labels"], service["spec"]["selector"])
        ):
            return ports <= {p["containerPort"] for c in template["spec"]["containers"] for p in c.get("ports", [])}
    return False


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> list[Blob]:
    return manifests(f"overlays/{request.param}")


def test_every_resource_fits_the_schema(rendered: list[Blob]):
    for blob in rendered:
        kubernetes_validate.validate(blob, VERSION, strict=True)


def test_a_resource_that_does_not_fit_is_refused():
    wrong = next(b for b in manifests("base") if b["kind"] == "Deployment")
    wrong["spec"]["template"]["spec"]["containers"][0]["comand"] = ["x"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_renders_the_same(overlay: str):
    line = ["kubectl", "kustomize", str(HERE / "overlays" / overlay)]
    theirs = yaml.safe_load_all(subprocess.run(line, capture_output=True, text=True, check=True, timeout=120).stdout)
    ours = {identity(blob): blob for blob in manifests(f"overlays/{overlay}")}
    assert {identity(blob): blob for blob in theirs} == ours


def test_the_manifests_keep_every_rule(rendered: list[Blob]):
    assert problems(rendered) == []


def _first(blobs: list[Blob], kind: str, name: str) -> Blob:
    return next(blob for blob in blobs if blob["kind"] == kind and blob["metadata"]["name"] == name)


def _mount(blobs: list[Blob], name: str, secret: str) -> None:
    """Have a workload hold a secret."""
    _spec(blobs, name)["volumes"].append({"name": "more", "secret": {"secretName": secret}})


def _spec(blobs: list[Blob], name: str) -> Blob:
    found: Blob = _first(blobs, "Deployment", name)["spec"]["template"]["spec"]
    return found


def _main(blobs: list[Blob], name: str) -> Blob:
    found: Blob = _spec(blobs, name)["containers"][0]
    return found


SECRET_BLOB = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "x", "namespace": "vetgate-vet"},
    "stringData": {"a": "b"},
}
BREAKS: dict[str, tuple[Callable[[list[Blob]], object], str]] = {
    "secret": (lambda b: b.append(SECRET_BLOB), "holds a secret"),
    "written out": (lambda b: _main(b, "mlflow")["env"].append({"name": "DB_PASSWORD", "value": "pw"}), "written out"),
    "in a map": (
        lambda b: _first(b, "ConfigMap", "mlflow")["data"].update(URL="postgresql://a:b@c/d"),
        "looks like a secret",
    ),
    "root": (lambda b: _spec(b, "mlflow")["securityContext"].update(runAsUser=0), "may run as root"),
    "non-root": (lambda b: _spec(b, "mlflow")["securityContext"].pop("runAsNonRoot"), "may run as root"),
    "seccomp": (lambda b: _spec(b, "mlflow")["securityContext"].pop("seccompProfile"), "no seccomp"),
    "token": (lambda b: _spec(b, "mlflow").update(automountServiceAccountToken=True), "holds its token"),
    "account": (lambda b: _spec(b, "mlflow").update(serviceAccountName="gate"), "no account of its zone"),
    "account token": (lambda b: _first(b, "ServiceAccount", "vet").pop("automountServiceAccountToken"), "hands out"),
    "node": (lambda b: _spec(b, "mlflow").update(hostNetwork=True), "shares something"),
    "node's files": (
        lambda b: _spec(b, "mlflow")["volumes"].append({"name": "n", "hostPath": {"path": "/"}}),
        "node's files",
    ),
    "capabilities": (lambda b: _main(b, "receiver")["securityContext"].pop("capabilities"), "capabilities is not"),
    "writable": (
        lambda b: _main(b, "receiver")["securityContext"].update(readOnlyRootFilesystem=False),
        "readOnlyRoot",
    ),
    "limit": (lambda b: _main(b, "vet-worker")["resources"]["limits"].pop("memory"), "no limit of memory"),
    "latest": (lambda b: _main(b, "valkey").update(image="valkey/valkey:latest"), "not pinned"),
    "no tag": (lambda b: _main(b, "valkey").update(image="valkey/valkey"), "not pinned"),
    "probe": (lambda b: _main(b, "gate-service").pop("livenessProbe"), "not probed"),
    "setting": (lambda b: _first(b, "ConfigMap", "places")["data"].update(VETGATE_STOER="x"), "no setting is read"),
    "module": (lambda b: _main(b, "receiver").update(command=["python", "-m", "flows.reciever"]), "no module"),
    "budget": (lambda b: b.remove(_first(b, "PodDisruptionBudget", "mlflow")), "no disruption budget"),
    "stuck": (lambda b: _first(b, "PodDisruptionBudget", "mlflow")["spec"].update(maxUnavailable=0), "for ever"),
    "service": (
        lambda b: _first(b, "Service", "mlflow")["spec"]["ports"][0].update(targetPort=5001),
        "selects no workload",
    ),
    "pod security": (lambda b: _first(b, "Namespace", "vetgate-vet")["metadata"].pop("labels"), "no restricted pods"),
    "default": (lambda b: b.remove(_first(b, "NetworkPolicy", "deny-all")), "denies nothing by default"),
    "half": (
        lambda b: _first(b, "NetworkPolicy", "deny-all")["spec"].update(policyTypes=["Ingress"]),
        "denies nothing",
    ),
    "key": (lambda b: _mount(b, "vet-worker", "gate-key"), "holds gate-key"),
    "vetter": (lambda b: _mount(b, "gate-service", "vetter-key"), "holds vetter-key"),
    "seeds": (lambda b: _mount(b, "receiver", "seed-secret"), "holds seed-secret"),
    "no seeds": (lambda b: _spec(b, "gate-service")["volumes"].clear(), "lacks seed-secret"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_manifest_that_breaks_a_rule_is_found(case: str):
    blobs, (tamper, expected) = manifests("overlays/prod"), BREAKS[case]
    tamper(blobs)
    assert any(expected in problem for problem in problems(blobs)), problems(blobs)


def test_submitted_models_are_opened_under_a_runtime_of_their_own_in_production():
    def runtimes(overlay: str) -> dict[str, Any]:
        templates = [(identity(blob)[3], pod_of(blob)) for blob in manifests(f"overlays/{overlay}")]
        return {name: t["spec"].get("runtimeClassName") for name, t in templates if t is not None}

    production = runtimes("prod")
    assert {name for name, runtime in production.items() if runtime == "sandboxed"} == {"vet-worker", "vet-one"}
    assert set(runtimes("dev").values()) == {None}


def test_the_server_of_the_example_starts_after_the_model_was_verified():
    spec = _spec(manifests("base"), "model")
    (verify,) = spec["initContainers"]
    assert "vetgate verify models:/prod.digits@champion --output /model/verified" in verify["command"][-1]
    (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "model"]
    assert mount["readOnly"] is True


def test_one_vetting_is_a_job_that_is_not_tried_again_after_a_verdict():
    blob = _first(manifests("base"), "CronJob", "vet-one")
    job = blob["spec"]["jobTemplate"]["spec"]
    codes = next(rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
    assert blob["spec"]["suspend"] is True
    assert codes == [1, 3, 4, 5]
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_ports_are_those_of_the_settings():
    fields = Settings.model_fields
    ports = {
        "gate-service": "gate_port",
        "receiver": "receiver_port",
        "mlflow": "mlflow_port",
        "prefect-server": "prefect_port",
    }
    services = {
        blob["metadata"]["name"]: blob["spec"]["ports"][0]["port"]
        for blob in manifests("base")
        if blob["kind"] == "Service" and "selector" in blob["spec"]
    }
    assert {name: services[name] for name in ports} == {name: fields[field].default for name, field in ports.items()}


def test_mlflow_is_told_of_services_that_there_are():
    blobs = manifests("base")
    places = (blob for blob in of(blobs, "ConfigMap") if blob["metadata"]["name"] == "places")
    addresses = next(blob["data"] for blob in places if space_of(blob) == "vetgate-gate")
    there = {
        f"http://{blob['metadata']['name']}.{space_of(blob)}:{blob['spec']['ports'][0]['port']}"
        for blob in of(blobs, "Service")
    }
    assert {addresses["VETGATE_RECEIVER_URL"], addresses["VETGATE_GATE_URL"]} < there
