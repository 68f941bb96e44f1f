"""The compose files are valid, closed by rule, and speak of what the project has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tasks.settings import Settings
from tests.infra.known import ROOT, command_problems, unknown_settings
from vetgate.shape import Blob

HERE = ROOT / "infra" / "compose"
FILES = ("compose.yaml", "compose.s3.yaml")
# what a person fills in; everything else has a value in .env.example or is a secret
CHOSEN = {"S3_IMAGE": "example/s3:1.0", "S3_USER": "1000:1000", "S3_COMMAND": "serve", "S3_HEALTHCHECK": "healthy"}
VARIABLE = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-?])([^}]*))?\}")
SECRET = re.compile(r"PASSWORD|SECRET(?!S)|TOKEN|_KEY$|AUTH_STRING")
# which networks lead from a service to another one
REACHES = {
    "vet-worker": {"prefect-server", "mlflow", "gate-service", "s3"},
    "gate-worker": {"prefect-server", "mlflow", "gate-service", "s3"},
    "receiver": {"prefect-server", "mlflow"},
    "mlflow": {"postgres", "s3", "receiver", "gate-service"},
    "prefect-server": {"postgres", "valkey"},
    "prefect-services": {"postgres", "valkey"},
}
REACHES_NOT = {
    "vet-worker": {"postgres", "valkey", "receiver", "gate-worker"},
    "gate-worker": {"postgres", "valkey", "receiver", "vet-worker"},
    "receiver": {"postgres", "valkey", "gate-service", "gate-worker", "vet-worker", "s3"},
    "s3": {"postgres", "valkey", "receiver"},
}
# which secret may be mounted where
MAY_HOLD = {
    "gate-key": {"gate-service", "gate-worker"},
    "gate-token": {"gate-service", "gate-worker", "vet-worker"},
    "webhook-secret": {"receiver", "gate-service"},
    "vetter-key": {"vet-worker"},
    "seed-secret": {"vet-worker", "gate-service"},
    "s3-admin": {"buckets", "registry", "s3"},
    "s3-gate": {"gate-service", "gate-worker"},
    "s3-vet": {"vet-worker"},
    "s3-mlflow": {"mlflow"},
}


def example() -> dict[str, str]:
    """.env.example as it is."""
    lines = (HERE / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def filled(text: str) -> str:
    """The text as compose reads it with .env.example, every blank of it filled in."""
    values = {
        key: CHOSEN.get(key, value or ("" if key.endswith("_DIGEST") else "filled")) for key, value in example().items()
    }

    def value(found: re.Match[str]) -> str:
        name, operator, word = found.groups()
        if name is None:
            return "$"
        return values.get(name) or (word if operator in (":-", "-") else "")

    return VARIABLE.sub(value, text)


def merged(*texts: str) -> Blob:
    """What compose makes of several files, as far as ours need it: mappings are merged, everything else replaced."""

    def onto(old: Any, new: Any) -> Any:
        both = isinstance(old, dict) and isinstance(new, dict)
        return {**old, **{k: onto(old.get(k), v) for k, v in new.items()}} if both else new

    whole: Blob = {}
    for text in texts:
        whole = onto(whole, yaml.safe_load(text))
    return whole


def raw() -> Blob:
    """Both files together, variables as written."""
    return merged(*((HERE / name).read_text() for name in FILES))


def ready() -> Blob:
    """Both files together, variables filled in."""
    return merged(*(filled((HERE / name).read_text()) for name in FILES))


def problems(project: Blob) -> list[str]:
    """Every rule of ours that a project with its variables filled in breaks."""
    services: Blob = project["services"]
    found = [f"{name}: {problem}" for name, service in services.items() for problem in _service(service, services)]
    return [*found, *_zones(services), *_closed(project)]


def _service(service: Blob, services: Blob) -> Iterator[str]:
    name, _, tag = service["image"].partition(":")
    if not tag or tag.startswith("latest"):
        yield f"image {service['image']} is not pinned"
    if "minio" in name:
        yield "MinIO has no fixes any more"
    if str(service.get("user", "0")).split(":")[0] in ("0", "root"):
        yield "runs as root"
    if service.get("read_only") is not True:
        yield "its root file system can be written"
    if service.get("cap_drop") != ["ALL"] or "cap_add" in service:
        yield "keeps capabilities"
    if "no-new-privileges:true" not in service.get("security_opt", []) or service.get("privileged"):
        yield "may gain privileges"
    if {"network_mode", "pid", "ipc", "devices", "userns_mode"} & set(service) or not service.get("networks"):
        yield "shares something of the machine, or names no network"
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    yield from (f"has no limit of {what}" for what in ("cpus", "memory", "pids") if what not in limits)
    if not _once(service) and not service.get("healthcheck", {}).get("test"):
        yield "has no health check"
    if "docker.sock" in str(service.get("volumes")):
        yield "holds the machine's docker"
    for other, how in service.get("depends_on", {}).items():
        wanted = "service_completed_successfully" if _once(services[other]) else "service_healthy"
        if how["condition"] != wanted:
            yield f"waits for {other} with {how['condition']}, not {wanted}"
    yield from (
        f"publishes {port} to others than this machine"
        for port in service.get("ports", [])
        if not port.startswith("127.0.0.1:")
    )
    yield from unknown_settings(service.get("environment", {}))
    if service["image"] != CHOSEN["S3_IMAGE"]:
        for line in (service.get("command"), (service.get("healthcheck") or {}).get("test", [""])[1:]):
            yield from command_problems(line) if line and len(line) > 1 else ()


def _once(service: Blob) -> bool:
    return bool(service["restart"].startswith("on-failure"))


def _zones(services: Blob) -> Iterator[str]:
    def meets(one: str, other: str) -> bool:
        return bool(set(services[one]["networks"]) & set(services[other]["networks"]))

    for one, others in REACHES.items():
        yield from (f"{one} cannot reach {other}" for other in sorted(others) if not meets(one, other))
    for one, others in REACHES_NOT.items():
        yield from (f"{one} can reach {other}" for other in sorted(others) if meets(one, other))
    for name, service in services.items():
        for secret in service.get("secrets", []):
            source = secret if isinstance(secret, str) else secret["source"]
            if name not in MAY_HOLD.get(source, set()):
                yield f"{name} holds {source}"
        if "front" in service["networks"] and not service.get("ports"):
            yield f"{name} is on the network that publishes ports, and publishes none"


def _closed(project: Blob) -> Iterator[str]:
    open_networks = {name for name, network in project["networks"].items() if not (network or {}).get("internal")}
    yield from (f"network {name} leads out" for name in sorted(open_networks - {"front"}))
    yield from (
        f"secret {name} is not a file" for name, secret in project["secrets"].items() if set(secret) != {"file"}
    )


def secrets_written_out(project: Blob) -> list[str]:
    """The environment values that hold a secret instead of naming where it comes from."""
    return [
        f"{name}: {key}"
        for name, service in project["services"].items()
        for key, value in service.get("environment", {}).items()
        if (SECRET.search(key) or re.search(r"://[^/]*:[^/]*@", str(value)))
        and not re.search(r"\$\{[A-Z_]+|^/run/|^/dev/null/", str(value))
    ]


def test_the_files_are_compose_files():
    PyCompose.from_yaml(yaml.safe_dump(ready())).validate()
    PyCompose.from_yaml(yaml.safe_dump(merged(filled((HERE / FILES[0]).read_text())))).validate()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"capdrop": ["ALL"]}, "capdrop"),
        ({"networks": ["nowhere"]}, "nowhere"),
        ({"mem_limit": "much"}, "much"),
        ({"secrets": ["unknown"]}, "unknown"),
    ],
)
def test_a_file_that_is_no_compose_file_is_refused(wrong: Blob, said: str):
    project = ready()
    project["services"]["receiver"] |= wrong
    with pytest.raises(ValueError, match=said):
        PyCompose.from_yaml(yaml.safe_dump(project)).validate()


def test_every_service_keeps_every_rule():
    assert problems(ready()) == []


BREAKS: dict[str, tuple[Callable[[Blob], object], str]] = {
    "latest": (lambda s: s["valkey"].update(image="valkey/valkey:latest"), "not pinned"),
    "no tag": (lambda s: s["valkey"].update(image="valkey/valkey"), "not pinned"),
    "minio": (lambda s: s["s3"].update(image="minio/minio:1"), "MinIO"),
    "root": (lambda s: s["mlflow"].update(user="0"), "runs as root"),
    "no user": (lambda s: s["mlflow"].pop("user"), "runs as root"),
    "writable": (lambda s: s["receiver"].update(read_only=False), "can be written"),
    "capability": (lambda s: s["receiver"].update(cap_add=["NET_ADMIN"]), "keeps capabilities"),
    "capabilities": (lambda s: s["receiver"].pop("cap_drop"), "keeps capabilities"),
    "privileges": (lambda s: s["receiver"].pop("security_opt"), "may gain privileges"),
    "host network": (lambda s: s["receiver"].update(network_mode="host"), "shares something"),
    "no limit": (lambda s: s["vet-worker"]["deploy"]["resources"]["limits"].pop("pids"), "no limit of pids"),
    "no health": (lambda s: s["gate-worker"].pop("healthcheck"), "no health check"),
    "docker": (lambda s: s["receiver"].update(volumes=["/var/run/docker.sock:/d"]), "machine's docker"),
    "started": (lambda s: s["mlflow"]["depends_on"]["postgres"].update(condition="service_started"), "waits for"),
    "open port": (lambda s: s["mlflow"].update(ports=["5000:5000"]), "publishes 5000:5000"),
    "setting": (lambda s: s["receiver"]["environment"].update(VETGATE_RECIEVER_PORT="1"), "no setting is read"),
    "module": (lambda s: s["receiver"].update(command=["python", "-m", "flows.reciever"]), "no module"),
    "pool": (lambda s: s["vet-worker"]["command"].__setitem__(3, "gpu"), "nothing to the pool"),
    "database": (lambda s: s["vet-worker"]["networks"].append("db"), "vet-worker can reach postgres"),
    "no way": (lambda s: s["vet-worker"].update(networks=["intake"]), "vet-worker cannot reach gate-service"),
    "key": (lambda s: s["vet-worker"]["secrets"].append("gate-key"), "vet-worker holds gate-key"),
    "vetter": (lambda s: s["gate-service"]["secrets"].append("vetter-key"), "gate-service holds vetter-key"),
    "seeds": (lambda s: s["receiver"]["secrets"].append("seed-secret"), "receiver holds seed-secret"),
    "other seeds": (lambda s: s["gate-worker"]["secrets"].append("seed-secret"), "gate-worker holds seed-secret"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_service_that_breaks_a_rule_is_found(case: str):
    project, (tamper, expected) = ready(), BREAKS[case]
    tamper(project["services"])
    assert any(expected in problem for problem in problems(project)), problems(project)


def test_a_network_that_leads_out_is_found():
    project = ready()
    project["networks"]["vet"] = {}
    assert problems(project) == ["network vet leads out"]


def test_no_secret_is_written_out():
    assert secrets_written_out(raw()) == []
    tampered = deepcopy(raw())
    tampered["services"]["valkey"]["environment"]["VALKEY_PASSWORD"] = "hunter2"
    tampered["services"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"] = "postgresql://mlflow:pw@postgres/mlflow"
    assert secrets_written_out(tampered) == ["valkey: VALKEY_PASSWORD", "mlflow: MLFLOW_BACKEND_STORE_URI"]


def test_the_example_names_every_variable_and_the_value_of_no_secret():
    used = {found[1] for name in FILES for found in VARIABLE.finditer((HERE / name).read_text()) if found[1]}
    assert used <= set(example())
    assert [key for key, value in example().items() if SECRET.search(key) and value] == []
    assert example()["S3_IMAGE"] == ""


def test_images_are_targets_of_the_dockerfile():
    targets = set(
        re.findall(r"^FROM .* AS (\S+)$", (ROOT / "infra" / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    )
    used = {
        m[1] for s in raw()["services"].values() if (m := re.search(r"IMAGE_REPOSITORY:-vetgate\}/(\w+):", s["image"]))
    }
    assert used == {"worker", "gate", "receiver", "mlflow", "prefect"}
    assert used <= targets


def test_health_is_asked_at_the_ports_that_the_services_listen_on():
    services, fields = ready()["services"], Settings.model_fields
    ports = {
        "gate-service": "gate_port",
        "receiver": "receiver_port",
        "mlflow": "mlflow_port",
        "prefect-server": "prefect_port",
    }
    for name, field in ports.items():
        assert f":{fields[field].default}/" in shlex.join(services[name]["healthcheck"]["test"])


def test_mlflow_is_told_of_services_that_it_reaches():
    environment, networks = ready()["services"]["gate-service"]["environment"], ready()["services"]
    for setting, name, field in (
        ("VETGATE_RECEIVER_URL", "receiver", "receiver_port"),
        ("VETGATE_GATE_URL", "gate-service", "gate_port"),
    ):
        assert environment[setting] == f"http://{name}:{Settings.model_fields[field].default}"
        assert set(networks["mlflow"]["networks"]) & set(networks[name]["networks"])
