"""What files under infra/ may refer to: settings, modules, commands and work pools that the project really has."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks.settings import Settings

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {f"VETGATE_{name.upper()}" for name in Settings.model_fields}
# what the images bring along
TOOLS = {"healthy", "install", "pg_isready", "postgres"}
SHELL = re.compile(r"(?:^|[;|&(]|\bdo\b|\bthen\b|\belse\b|\bexec\b)\s*((?:prefect|vetgate|python|mlflow) [^;|&>\n)]+)")


def unknown_settings(names: Iterable[str]) -> list[str]:
    """The VETGATE_* variables that no setting is read from."""
    return [
        f"no setting is read from {name}"
        for name in sorted(names)
        if name.startswith("VETGATE_") and name not in SETTINGS
    ]


def command_problems(command: Sequence[str]) -> list[str]:
    """Why a command line could not be carried out by the project, its servers or the images' tools."""
    return list(_problems(tuple(map(str, command))))


@functools.cache
def _problems(command: tuple[str, ...]) -> list[str]:
    tool, arguments = command[0], list(command[1:])
    if tool == "sh":
        return [problem for line in SHELL.findall(arguments[-1]) for problem in command_problems(shlex.split(line))]
    known = {"python": _python, "prefect": _prefect, "mlflow": _mlflow, "vetgate": _vetgate}
    if tool in known:
        return known[tool](arguments)
    return [] if tool in TOOLS else [f"no image has a command {tool}"]


def pools() -> set[str]:
    """The work pools that prefect.yaml deploys to."""
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return {item["work_pool"]["name"] for item in deployments}


def _python(arguments: list[str]) -> list[str]:
    if arguments[:2] == ["-m", "flows.service.worker"] and arguments[2] not in pools():
        return [f"prefect.yaml deploys nothing to the pool {arguments[2]}"]
    if arguments[0] == "-m":
        return [] if importlib.util.find_spec(arguments[1]) else [f"no module {arguments[1]}"]
    if arguments[0] == "-c":
        found = re.findall(r"from (\S+) import (\w+)", arguments[1])
        return [
            f"no {name} in {module}" for module, name in found if not hasattr(importlib.import_module(module), name)
        ]
    return []  # a script that is mounted


def _prefect(arguments: list[str]) -> list[str]:
    tokens = [item for item in arguments if item != "--no-prompt"]
    # a loop's variable stands for a pool
    tokens = ["vet" if item.startswith("$") else item for item in tokens]
    try:
        _, bound, _ = _prefect_app().parse_args(tokens, exit_on_error=False, print_error=False)
    except Exception as error:
        return [f"prefect does not understand {shlex.join(tokens)}: {type(error).__name__}"]
    pool = bound.arguments.get("work_pool_name")
    return [] if pool is None or pool in pools() else [f"prefect.yaml deploys nothing to the pool {pool}"]


def _mlflow(arguments: list[str]) -> list[str]:
    options = {name for param in _mlflow_server().params for name in (*param.opts, *param.secondary_opts)}
    wrong = [item for item in arguments[1:] if item.startswith("-") and item not in options]
    return (
        [f"mlflow server has no option {item}" for item in wrong]
        if arguments[0] == "server"
        else ["mlflow only serves"]
    )


def _vetgate(arguments: list[str]) -> list[str]:
    import typer.main

    from flows.cli.commands import app

    group: Any = typer.main.get_command(app)
    try:
        context = group.make_context("vetgate", list(arguments), resilient_parsing=True)
        name, command, rest = group.resolve_command(context, list(arguments))
        if command is None:
            return [f"vetgate has no command {arguments[0]}"]
        command.make_context(name, rest)
    except Exception as error:
        return [f"vetgate does not understand {shlex.join(arguments)}: {error}"]
    return []


@functools.cache
def _prefect_app() -> Any:
    from prefect.cli._app import _app

    return _app


@functools.cache
def _mlflow_server() -> Any:
    from mlflow.cli import cli

    return cli.commands["server"]
