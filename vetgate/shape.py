"""Frozen dataclasses as JSON and back: what does not have their exact shape is an error, not a KeyError later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from vetgate.errors import StoreError

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter

T = TypeVar("T")
# a JSON object
Blob = dict[str, Any]
# a float that was written as an integer stays one, so that its JSON stays the same to the byte
Number = int | float
STRICT: ConfigDict = {"extra": "forbid", "strict": True}
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def added() -> Any:
    """A field that earlier versions did not write: None of those, and left out again, so that they keep their bytes."""
    return field(default=None, metadata={"added": True})


class Shaped:
    """A frozen dataclass that travels as JSON; `WHAT` says what was expected where an object has another shape."""

    __pydantic_config__ = STRICT
    WHAT = "an object"

    def to_json(self) -> Blob:
        """A JSON object that `from_json` reads."""
        return dict(to_json(self))

    @classmethod
    def from_json(cls, blob: object) -> Self:
        """What `to_json` wrote; raises StoreError for anything else."""
        return from_json(cls, blob, cls.WHAT)


def to_json(value: Any) -> Any:
    """The JSON value of dataclasses, mappings and sequences, fields in the order in which they are declared."""
    if is_dataclass(value):
        given = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: to_json(of) for f, of in given if not (of is None and f.metadata.get("added"))}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list | tuple) else value


def from_json(kind: type[T], blob: object, what: str) -> T:
    """The dataclass that `to_json` wrote; raises StoreError for anything else, a field too many included."""
    # loading it takes a tenth of a second, which those who want a name from here need not wait for
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(json.dumps(blob))
    except (TypeError, ValueError) as error:
        wrong = [str(error)]
        if isinstance(error, ValidationError):
            wrong = [f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()]
        raise StoreError(
            f"expected {what}, got another object ({'; '.join(wrong)[:400]}); have both sides run the same vetgate"
        ) from error


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
