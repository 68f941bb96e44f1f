"""The image file builds on pinned bases from the lock, and no image runs as root or brings tools to build with."""

from __future__ import annotations

import fnmatch
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from dockerfile_parse import DockerfileParser

from tests.infra.known import ROOT, command_problems, unknown_settings

FILE = ROOT / "infra" / "docker" / "Dockerfile"
IMAGES = {"worker", "gate", "receiver", "mlflow", "prefect"}
PINNED = re.compile(r"[a-z0-9./-]+:(?!latest)[A-Za-z0-9_.-]*\d[A-Za-z0-9_.-]*(@sha256:[0-9a-f]{64})?")
BUILD_TOOLS = {"gcc", "g++", "make", "build-essential", "python3-dev", "cmake", "curl", "wget"}


@dataclass
class Stage:
    """One FROM and what follows it."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        """What follows this instruction, each time it stands there."""
        return [value for name, value in self.steps if name == instruction]


def stages(text: str) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first FROM, and the stages."""
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for step in DockerfileParser(fileobj=io.BytesIO(text.encode())).structure:
        name, value = step["instruction"], step["value"]
        if name == "FROM":
            base, _, alias = value.partition(" AS ")
            found.append(Stage(alias, base))
        elif name == "ARG" and not found:
            key, _, default = value.partition("=")
            arguments[key] = default
        elif name != "COMMENT":
            found[-1].steps.append((name, value))
    return arguments, found


def problems(text: str) -> list[str]:
    """Every rule of ours that the file breaks."""
    arguments, found = stages(text)
    named = {stage.name: stage for stage in found}
    wrong = [f"no target {name}" for name in sorted(IMAGES - set(named))]
    for stage in found:
        wrong += [f"{stage.name}: {problem}" for problem in _stage(stage, named, arguments)]
    for name in sorted(IMAGES & set(named)):
        wrong += [f"{name}: {problem}" for problem in _image(_with_bases(named[name], named))]
    return wrong


def _stage(stage: Stage, named: dict[str, Stage], arguments: dict[str, str]) -> Iterator[str]:
    base = re.sub(r"\$\{(\w+)\}", lambda found: arguments.get(found[1], ""), stage.base)
    if stage.base not in named and not PINNED.fullmatch(base):
        yield f"its base {base!r} is not pinned"
    if stage.values("ADD"):
        yield "adds instead of copying"
    for run in stage.values("RUN"):
        if re.search(r"(curl|wget)[^|]*\|\s*(ba)?sh", run):
            yield "runs what it downloads"
        if "apt-get install" in run and not ("--no-install-recommends" in run and "rm -rf /var/lib/apt/lists" in run):
            yield "installs what was not asked for, or keeps the lists"
        yield from _pip(run)
    for copy in stage.values("COPY"):
        if "--from=" not in copy:
            for source in [item for item in shlex.split(copy) if not item.startswith("--")][:-1]:
                if not (ROOT / source).exists() or ignored(source):
                    yield f"copies {source}, which is not there or left out by .dockerignore"


def _pip(run: str) -> Iterator[str]:
    lock = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    for line in re.findall(r"pip install ([^&;]+)", run):
        words = shlex.split(line)
        if "--no-compile" in words or (f"uv pip install {line}" in run and "--compile-bytecode" not in words):
            yield f"installs without bytecode: {line.strip()}"
        if "--constraint" not in words and "^torch==" not in line:
            yield f"installs without the lock: {line.strip()}"
        if "--constraint" in words:
            packages = [w for w in words if re.fullmatch(r"[a-z][a-z0-9-]*", w)]
            yield from (f"installs {package}, which is not in the lock" for package in packages if package not in lock)


def _with_bases(stage: Stage, named: dict[str, Stage]) -> list[Stage]:
    return [*(_with_bases(named[stage.base], named) if stage.base in named else []), stage]


def _image(line: list[Stage]) -> Iterator[str]:
    users = [user for stage in line for user in stage.values("USER")]
    if not users or users[-1].split(":")[0] in ("root", "0"):
        yield "runs as root"
    checks = [check for stage in line for check in stage.values("HEALTHCHECK")]
    if not checks or checks[-1].startswith("NONE"):
        yield "has no health check"
    if any(stage.name.startswith("build") for stage in line):
        yield "is built on a stage that builds"
    installed = {
        word for stage in line for run in stage.values("RUN") if "apt-get install" in run for word in run.split()
    }
    yield from (f"has {tool}" for tool in sorted(installed & BUILD_TOOLS))
    if ("bubblewrap" in installed) != (line[-1].name == "worker"):
        yield "has bubblewrap where no model is opened, or lacks it where one is"
    for stage in line:
        yield from unknown_settings(re.findall(r"\b(VETGATE_\w+)=", " ".join(stage.values("ENV"))))
        for command in stage.values("CMD"):
            yield from command_problems(json_list(command))
    asked = re.findall(r":(\d+)/", checks[-1]) if checks else []
    exposed = [value for stage in line for value in stage.values("EXPOSE")]
    if asked != exposed:
        yield f"is asked for its health at {asked}, and exposes {exposed}"


def json_list(text: str) -> list[str]:
    """The words of an exec form."""
    words = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
    assert text.startswith("[") and words, f"expected an exec form, got {text}"
    return words


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves the path out; a later line goes before an earlier one."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if pattern and not pattern.startswith("#") and _under(path, pattern):
            out = not line.startswith("!")
    return out


def _under(path: str, pattern: str) -> bool:
    parents = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    return any(fnmatch.fnmatchcase(item, pattern) for item in parents)


def test_the_file_keeps_every_rule():
    assert problems(FILE.read_text()) == []


BREAKS = {
    "latest": ("python:3.11.13-slim-bookworm\n", "python:latest\n", "not pinned"),
    "no tag": ("python:3.11.13-slim-bookworm\n", "python\n", "not pinned"),
    "add": ("COPY constraints.txt ./", "ADD https://example.org/constraints.txt ./", "adds instead"),
    "pipe": ("RUN groupadd", "RUN curl https://example.org/x | sh && groupadd", "runs what it downloads"),
    "recommends": ("--yes --no-install-recommends git", "--yes git", "not asked for"),
    "compiler": ("--no-install-recommends git", "--no-install-recommends git gcc", "has gcc"),
    "no lock": ("--constraint constraints.txt mlflow", "mlflow", "without the lock"),
    "not in the lock": ("mlflow boto3", "mlflow boto4", "boto4, which is not in the lock"),
    "root": ("USER 10001:10001\nEXPOSE 8481", "USER root\nEXPOSE 8481", "gate: runs as root"),
    "no user": ("USER 10001:10001\nEXPOSE 5000", "EXPOSE 5000", "mlflow: runs as root"),
    "build stage": ("FROM runtime AS mlflow", "FROM build-mlflow AS mlflow", "a stage that builds"),
    "sandbox": ("bubblewrap \\", "bubblewarp \\", "bubblewrap where no model"),
    "setting": ("VETGATE_HOME=", "VETGATE_HOMES=", "no setting is read"),
    "module": ("flows.service.receiver", "flows.reciever", "no module"),
    "port": ("EXPOSE 8480", "EXPOSE 8481", "exposes"),
    "uv": (
        "RUN pip install --constraint constraints.txt mlflow",
        "RUN uv pip install --constraint constraints.txt mlflow",
        "without bytecode",
    ),
    "no bytecode": ("constraints.txt .\n", "constraints.txt --no-compile .\n", "without bytecode"),
    "copy": ("COPY tasks ./tasks", "COPY tests ./tests", "left out by .dockerignore"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_file_that_breaks_a_rule_is_found(case: str):
    old, new, expected = BREAKS[case]
    text = FILE.read_text()
    assert old in text
    assert any(expected in problem for problem in problems(text.replace(old, new))), problems(text.replace(old, new))


def test_an_image_without_a_health_check_is_found():
    text = re.sub(r"(?m)^HEALTHCHECK.*worker:vet.*$", "", FILE.read_text())
    assert "worker: has no health check" in problems(text)


@pytest.mark.parametrize(
    "path",
    [
        *(".git", ".vetgate", ".venv", "tests", "infra/compose/secrets/gate.ed25519", "infra/compose/.env"),
        *("infra/bank/weights", "infra/bank/triggers"),
    ],
)
def test_what_must_not_get_into_an_image_is_left_out(path: str):
    assert ignored(path)


def test_what_the_wheel_is_built_from_gets_into_the_stage_that_builds_it():
    build = next(stage for stage in stages(FILE.read_text())[1] if stage.name == "build-vetgate")
    copied = [source for value in build.values("COPY") for source in shlex.split(value)[:-1]]
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for path in ("hatch_build.py", *wheel["packages"], *wheel["hooks"]["custom"]["share"]):
        assert any(Path(path).is_relative_to(source) for source in copied) and not ignored(path), path


def test_make_install_compiles_what_uv_installs_as_the_images_do():
    lines = re.findall(r"uv pip install ([^|\\]+)", (ROOT / "Makefile").read_text())
    assert lines and all("--compile-bytecode" in shlex.split(line) for line in lines)


class Answers(BaseHTTPRequestHandler):
    """200 on /health, two workers on a pool, 503 elsewhere."""

    heartbeat = ""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        health = {"last_heartbeat_time": type(self).heartbeat, "heartbeat_interval_seconds": 5}
        self.send_response(200 if self.path == "/api/work_pools/vet/workers/filter" else 404)
        self.end_headers()
        self.wfile.write(json.dumps([{"name": socket.gethostname(), **health}]).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def asked(*addresses: str, **environment: str) -> int:
    """The exit code of the images' health check."""
    program = ROOT / "infra" / "docker" / "healthy"
    line = [sys.executable, str(program), *addresses]
    return subprocess.run(line, env={**os.environ, **environment}, capture_output=True, timeout=60).returncode


def test_the_health_check_tells_an_answer_from_none():
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        assert asked(f"http://{address}/health", f"tcp://{address}") == 0
        assert asked(f"http://{address}/other") == 1
        server.shutdown()
    assert asked(f"tcp://{address}") == 1
    assert asked(f"http://{address}/health") == 1
    assert asked() == 2


def test_the_health_check_tells_a_worker_that_was_heard_of_from_a_silent_one():
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        api = f"http://127.0.0.1:{server.server_port}/api"
        Answers.heartbeat = datetime.now(UTC).isoformat()
        assert asked("worker:vet", PREFECT_API_URL=api) == 0
        assert asked("worker:gate", PREFECT_API_URL=api) == 1
        Answers.heartbeat = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
        assert asked("worker:vet", PREFECT_API_URL=api) == 1
        server.shutdown()
