"""What a pickle builds, as its reader sees it: data, and calls of the few imports that are allowed.

Numbers, None and text stand for themselves. Everything else is a node; a node may stand in several places.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class Opaque:
    """What stands for a value that was refused: a finding tells of it already."""


OPAQUE = Opaque()


@dataclass(eq=False)
class Long:
    """A number or text that is too long to be kept, or that cannot be read: `size` bytes at `at`; data, no more."""

    at: int
    size: int


@dataclass(eq=False)
class Raw:
    """Bytes, `size` of them at `at` in what is read; `text` where they came as text."""

    at: int
    size: int
    text: str | None = None


@dataclass(eq=False)
class Import:
    """A module's attribute, by its names; `value` where it is harmless in any place, as dtypes are."""

    module: str
    name: str
    value: bool = False

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Tupled:
    """A tuple; `loose` where an import that is no plain value stands in it, however deep."""

    items: tuple[Any, ...]
    loose: bool


@dataclass(eq=False)
class Listed:
    """A list, set or frozen set."""

    items: list[Any] = field(default_factory=list)
    kind: str = "list"


@dataclass(eq=False)
class Mapped:
    """A dictionary, by its pairs in the order in which they were set."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    ordered: bool = False


@dataclass(eq=False, frozen=True)
class Storage:
    """A storage of a torch file: its key, the name of its type, and how many elements it has."""

    key: str
    type: str
    count: int


@dataclass(eq=False)
class Tensor:
    """A strided view of a storage, all in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(eq=False)
class Dtype:
    """A numpy dtype of plain numbers, `state` once it was set."""

    code: str
    order: str = "|"


@dataclass(eq=False)
class Array:
    """A numpy array that is being rebuilt: its parts once they are set."""

    dtype: Dtype | None = None
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: Raw | None = None


@dataclass(eq=False)
class Plain:
    """Another harmless value, such as a size or a device."""

    kind: str
    items: tuple[Any, ...] = ()


def loose(node: Any) -> bool:
    """Whether an import that is no plain value stands here, where it has no business."""
    kind = type(node)
    return bool((kind is Import and not node.value) or (kind is Tupled and node.loose))


def tupled(items: tuple[Any, ...]) -> Tupled:
    """A tuple of nodes."""
    return Tupled(items, any(loose(item) for item in items))


def shown(node: Any) -> str:
    """A node in a few words."""
    if isinstance(node, Import):
        return str(node)
    if node is None or isinstance(node, bool | int | float | str):
        return repr(node)[:60]
    return type(node).__name__.lower()
