"""params.yaml: the hyper-parameters of every method, read once a flow and checked without importing torch."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from vetgate import shipped
from vetgate.errors import BadPolicy
from vetgate.role import Uses, guard_functions, guard_roles, repair_roles, roles
from vetgate.trust.named_file import read_named

SHIPPED = shipped.PARAMS
PACKAGE = shipped.PACKAGES / "vetgate"
OTHERS = ("data", "bank")
METHODS: Mapping[str, Callable[[], Mapping[str, object]]] = {
    "detect": roles,
    "repair": repair_roles,
    "guard": guard_roles,
}


class Params(BaseModel, frozen=True, extra="forbid"):
    """What runs, in this order, and with which hyper-parameters."""

    detect: dict[str, dict[str, Any]]
    repair: dict[str, dict[str, Any]]
    data: dict[str, Any]
    guard: dict[str, dict[str, Any]] = Field(default_factory=dict)


def load_params(path: Path | None = None) -> Params:
    """The methods that have a section in the file, by default the shipped one, in its order; raises BadPolicy."""
    path = path or SHIPPED
    try:
        sections = yaml.safe_load(read_named(path).decode())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadPolicy(f"expected hyper-parameters at {path}, got {error}; restore the file") from error
    if not isinstance(sections, dict) or not all(isinstance(v, dict) for v in sections.values()):
        raise BadPolicy(f"expected one section a method in {path}, got {sections!r}; see the shipped file")
    found: dict[str, dict[str, dict[str, Any]]] = {"detect": {}, "repair": {}, "guard": {}}
    for name, section in sections.items():
        for kind in found:
            if name in METHODS[kind]():
                found[kind][name] = _checked(kind, name, section, path)
    unknown = sorted(set(sections).difference(OTHERS, *found.values()))
    if unknown:
        raise BadPolicy(f"expected sections of methods or {', '.join(OTHERS)} in {path}, got {', '.join(unknown)}")
    return Params(**found, data=sections.get("data", {}))


def needs(kind: str, name: str) -> frozenset[str]:
    """What a method declares it needs of a subject."""
    return frozenset(_declared(kind, name).get("needs") or ())


def uses(name: str) -> Uses | None:
    """What a repair declares it uses of an evidence: flagged, triggers, neurons or nothing."""
    repairs = repair_roles()
    if name not in repairs:
        raise BadPolicy(f"expected one of the repairs {', '.join(sorted(repairs))}, got {name}; correct its name")
    return repairs[name].uses


def _checked(kind: str, name: str, section: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        return _schema(kind, name).model_validate(section).model_dump()
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadPolicy(f"{path}: section {name} does not fit vetgate/{kind}/{name}.py: {wrong}") from error


@cache
def _schema(kind: str, name: str) -> type[BaseModel]:
    """A model of the keyword-only parameters in the method's signature; of a guard, in that of its fitting."""
    function = _function(kind, name, guard_functions(name)["fit"] if kind == "guard" else None)
    fields: dict[str, Any] = {}
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        kinds = _types(argument.annotation)
        fields[argument.arg] = (kinds, ... if default is None else ast.literal_eval(default))
    return create_model(name, __config__=ConfigDict(extra="forbid", frozen=True, strict=True), **fields)


@cache
def _declared(kind: str, name: str) -> dict[str, Any]:
    """The literal arguments of the method's @detector or @repair."""
    for decorator in _function(kind, name).decorator_list:
        if isinstance(decorator, ast.Call):
            return {
                k.arg: ast.literal_eval(k.value)
                for k in decorator.keywords
                if k.arg is not None and isinstance(k.value, ast.Constant | ast.Set)
            }
    return {}


@cache
def _function(kind: str, name: str, function: str | None = None) -> ast.FunctionDef:
    """A function in a method's file as source, by default that of its name: importing it would import torch."""
    path = PACKAGE / kind / f"{name}.py"
    try:
        tree = ast.parse(path.read_text())
    except OSError as error:
        raise BadPolicy(f"expected a method {name} at {path}, got {error.strerror}; correct its name") from error
    return next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == (function or name))


def _types(annotation: ast.expr | None) -> Any:
    known: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "None": None}
    names = [n.strip() for n in ast.unparse(annotation).split("|")] if annotation is not None else []
    kinds = [known.get(n, Any) for n in names] or [Any]
    union = kinds[0]
    for kind in kinds[1:]:
        union = union | kind
    return union
