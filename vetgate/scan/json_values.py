"""Values of configurations: what libraries that read them import or call."""

from __future__ import annotations

import re
from typing import Any

from vetgate.scan.inspection import Place
from vetgate.scan.keras_config import check_layer
from vetgate.scan.mlmodel import check_flavor
from vetgate.scan.pickles.allowed import rule_of
from vetgate.scan.rules import (
    CONFIG_CALL,
    CONFIG_TARGET,
    PICKLE_CALL,
    REMOTE_CODE,
    SOURCE_CODE,
    TEMPLATE,
)

TARGETS = ("_target_", "__target__", "_class_name_")
OF_JSONPICKLE = ("py/object", "py/reduce", "py/function", "py/type", "py/newargs", "py/newargsex", "py/repr", "py/mod")
INSIDE = re.compile(
    r"__(?:class|globals|builtins|import|subclasses|mro|base|bases|init|getattribute|code|dict|self)__|\battr\s*\(\s*[\"']_|"
    r"\b(?:lipsum|cycler|joiner|namespace)\b\s*(?:\.|\[)\s*[\"']?_|\bpopen\b|\bos\.system\b"
)


def check_template(text: str, at: Place) -> None:
    """Tell of a template that reaches for the inside of Python, within its braces."""
    for opening, closing in (("{{", "}}"), ("{%", "%}")):
        start = text.find(opening)
        while start >= 0:
            stop = text.find(closing, start)
            if stop < 0:
                # what does not end is no template
                break
            if found := INSIDE.search(text, start, stop):
                at.found(TEMPLATE, text[max(0, found.start() - 40) : found.end() + 40])
            start = text.find(opening, stop)


def check_target(target: Any, at: Place) -> None:
    """Tell of a class or function that a configuration names to be called."""
    module, _, name = str(target).rpartition(".")
    runs = rule_of(module or "builtins", name) is PICKLE_CALL
    at.found(CONFIG_CALL if runs else CONFIG_TARGET, f"{target}")


def check_value(value: Any, at: Place) -> None:
    """Look at every value in a value of JSON."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            _check_object(value, at)
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and "{" in value:
            check_template(value, at)


def _check_object(value: dict[str, Any], at: Place) -> None:
    if value.get("auto_map"):
        at.found(REMOTE_CODE, f"auto_map: {value['auto_map']}")
    if value.get("trust_remote_code") not in (None, False):
        at.found(REMOTE_CODE, f"trust_remote_code: {value['trust_remote_code']}")
    if value.get("custom_pipelines"):
        at.found(REMOTE_CODE, f"custom_pipelines: {list(value['custom_pipelines'])}")
    for key in TARGETS:
        if key in value:
            check_target(value[key], at)
    for key in OF_JSONPICKLE:
        if key in value:
            at.found(CONFIG_CALL, f"{key}: {value[key]}")
    if "__module__" in value and "__class__" in value:
        at.found(CONFIG_TARGET, f"{value['__module__']}.{value['__class__']}")
    if "class_name" in value and "config" in value:
        check_layer(value, at)
    check_flavor(value, at)


def check_names(value: Any, at: Place) -> None:
    """Tell of a notebook, whose cells are code."""
    if isinstance(value, dict) and "cells" in value and "nbformat" in value:
        at.found(SOURCE_CODE, "a notebook")
