"""Write docs/reference/policy.md from the policy's model: `python -m docs.policy_keys`; --check as in docs.methods."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import vetgate.verdict.policy
from docs.generated import settle
from vetgate.verdict.policy import Policy

PAGE = Path(__file__).parent / "reference" / "policy.md"
HEAD = """# Policy

Generated from the code by `make docs`; do not edit.

A policy is a YAML file that `VETGATE_POLICY` names; without it the shipped one counts. Keys that are not listed here
are refused, and a key that is left out has its default. A share is a number from 0 to 1. The digest of the policy is
part of every attestation: under another policy a verdict is stale.

| key | meaning | type | default |
| --- | --- | --- | --- |
"""
SHIPPED = """
## The shipped policy

```yaml
{text}```
"""


def render() -> str:
    """The whole page."""
    return HEAD + "\n".join(rows(Policy, "")) + "\n" + SHIPPED.format(text=vetgate.verdict.policy.SHIPPED.read_text())


def rows(section: type[BaseModel], under: str) -> Iterator[str]:
    """A row for each key of a section, those of its own sections below it."""
    texts = descriptions(section)
    for key, info in section.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield f"| `{under}{key}` | {texts[key]} | | |"
            yield from rows(inner, f"{under}{key}.")
        else:
            kind = kind_of(section.model_json_schema()["properties"][key])
            yield f"| `{under}{key}` | {texts[key]} | {kind} | {default(info)} |"


def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """The text below each key in the source; KeyError for one without."""
    (definition,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for key, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name) and isinstance(text, ast.Expr):
            found[key.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def kind_of(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(map(kind_of, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = " and ".join(f"{word} {schema[name]:g}" for name, word in bounds.items() if name in schema)
    kind = {"array": "list", "object": "by name", "boolean": "true or false"}.get(schema["type"], schema["type"])
    if schema["type"] == "object" and "additionalProperties" in schema:
        kind = f"{kind}: {kind_of(schema['additionalProperties'])}"
    return f"{kind}, {said}" if said else str(kind)


def default(info: FieldInfo) -> str:
    """The default as it would stand in YAML, in one line."""
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, dict):
        return f"`{{{', '.join(f'{k}: {v}' for k, v in value.items())}}}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or with --check say whether it is up to date."""
    return settle(PAGE, render(), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
