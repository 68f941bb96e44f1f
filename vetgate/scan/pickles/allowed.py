"""The imports that a pickle may have, each in the one place and with the arguments in which it is harmless.

Everything else is denied; what is known to run code is only told apart from the rest by its rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from vetgate.scan.pickles.nodes import (
    OPAQUE,
    Array,
    Dtype,
    Import,
    Listed,
    Mapped,
    Opaque,
    Plain,
    Raw,
    Storage,
    Tensor,
    Tupled,
    loose,
)
from vetgate.scan.rules import (
    PICKLE_CALL,
    PICKLE_GLOBAL,
    PICKLE_OBJECTS,
    PICKLED_MODULE,
    TENSOR_BOUNDS,
    ScanRule,
)

ITEM_SIZES = {
    "FloatStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16, "UntypedStorage": 1,
}  # fmt: skip
DTYPES = (
    "float32", "float", "float64", "double", "float16", "half", "bfloat16", "int64", "long", "int32", "int",
    "int16", "short", "int8", "uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128",
    "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
STRIDED = ("strided", "contiguous_format", "channels_last", "preserve_format")
VALUES = {("torch", name) for name in (*DTYPES, *STRIDED)}
STORAGES = {("torch", name) for name in ITEM_SIZES} | {("torch.storage", "UntypedStorage")}
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
ARGUMENTS = STORAGES | {("numpy", "ndarray")}
PLAIN_DTYPE = re.compile(r"[<>=|]?(?:[biufcmM][0-9]{1,2}|[SUV][0-9]{1,6}|\?)")
# roots of modules that run code, reach the system, or load or look up more; private modules count as such too
DANGEROUS = {
    "os", "posix", "nt", "ntpath", "posixpath", "genericpath", "subprocess", "sys", "builtins", "__builtin__",
    "importlib", "imp", "runpy", "pty", "socket", "socketserver", "shutil", "ctypes", "multiprocessing", "pickle",
    "cPickle", "marshal", "shelve", "dill", "cloudpickle", "code", "codeop", "pdb", "bdb", "doctest",
    "unittest", "timeit", "cProfile", "profile", "trace", "webbrowser", "http", "urllib", "urllib2", "httplib",
    "ftplib", "smtplib", "poplib", "imaplib", "telnetlib", "nntplib", "xmlrpc", "asyncio", "threading", "signal",
    "tempfile", "glob", "pip", "pkgutil", "pydoc", "operator", "functools", "types", "inspect", "platform",
    "commands", "distutils", "setuptools", "ensurepip", "venv", "zipimport", "zipapp", "antigravity", "tracemalloc",
    "linecache", "logging", "uuid", "tkinter", "turtle", "turtledemo", "idlelib", "lib2to3", "test", "sqlite3",
    "ssl", "select", "selectors", "mmap", "resource", "atexit", "gc", "site", "sysconfig", "copyreg", "copy_reg",
    "concurrent", "contextlib", "aifc", "getpass", "fileinput", "compileall", "py_compile", "readline", "curses",
    "crypt", "nis", "requests", "torch.utils", "torch.hub", "torch.jit", "torch.serialization", "torch.storage",
    "torch.fx", "torch.package", "torch.distributed", "torch._dynamo", "torch._inductor", "torch.testing",
    "numpy.testing", "numpy.f2py", "numpy.distutils", "numpy.ctypeslib", "scipy.weave", "pandas.io", "IPython",
    "ipykernel", "jinja2", "yaml", "ast",
}  # fmt: skip
MODULES = ("torch.nn.", "torchvision.", "timm.", "transformers.", "ultralytics.", "models.", "fastai.", "sentence_tr")


def rule_of(module: str, name: str) -> ScanRule:
    """The rule that an import breaks which is not allowed."""
    parts = [*module.split("."), *name.split(".")]
    roots = {".".join(module.split(".")[:count]) for count in (1, 2)}
    private = parts[0].startswith("_") and not parts[0].startswith("__main__")
    # a name with dots is walked attribute by attribute, and any module leads to others
    if private or roots & DANGEROUS or DANGEROUS & set(parts[1:]) or len(name.split(".")) > 1:
        return PICKLE_CALL
    return PICKLED_MODULE if module.startswith(MODULES) or module == "__main__" else PICKLE_GLOBAL


def storage(node: Any) -> Storage | None:
    """The storage that a persistent id stands for: ("storage", type, key, location, count[, None])."""
    if not isinstance(node, Tupled) or len(node.items) not in (5, 6) or node.items[0] != "storage":
        return None
    _, kind, key, location, count, *view = node.items
    known = isinstance(kind, Import) and (kind.module, kind.name) in STORAGES
    plain = isinstance(key, str) and isinstance(location, str) and _whole(count) and view in ([], [None])
    # a location other than the cpu is mapped by the loader; what is in the file is the same
    return Storage(key, kind.name, count) if known and plain else None


def build(target: Any, state: Any) -> bool:
    """Set the state of an object as BUILD does; False if it is not one of the few that are harmless."""
    if isinstance(target, Mapped) and target.ordered:
        # a module's versions; torch sets it on the dictionary itself
        return isinstance(state, Mapped) and all(key == "_metadata" and not loose(v) for key, v in state.pairs)
    if isinstance(target, Dtype):
        return _dtype_state(target, state)
    if isinstance(target, Array):
        return _array_state(target, state)
    return False


def _dtype_state(target: Dtype, state: Any) -> bool:
    items = state.items if isinstance(state, Tupled) else ()
    # of times there is metadata with their unit besides
    times = target.code.lstrip("<>=|")[:1] in ("m", "M")
    if len(items) != 8 + times or items[0] not in (3, 4) or items[1] not in ("<", ">", "|", "="):
        return False
    target.order = items[1]
    # no subarray, no names, no fields, sizes by the type; of the flags only that texts start as zeros
    flags = (0, 8) if target.code.lstrip("<>=|")[:1] in ("S", "U", "V") else (0,)
    return items[2:5] == (None, None, None) and all(_number(item) for item in items[5:7]) and items[7] in flags


def _array_state(target: Array, state: Any) -> bool:
    items = state.items if isinstance(state, Tupled) else ()
    if len(items) == 5 and isinstance(items[2], Opaque) and isinstance(items[4], Listed):
        return True
    if len(items) != 5 or items[0] not in (0, 1) or not isinstance(items[2], Dtype) or type(items[3]) is not bool:
        return False
    shape = _sizes(items[1])
    data = items[4]
    if shape is None or target.data is not None or not isinstance(data, Raw):
        return False
    if _count(shape) * _item_size(items[2]) != data.size:
        return False
    target.dtype, target.shape, target.fortran, target.data = items[2], shape, items[3], data
    return True


def _item_size(dtype: Dtype) -> int:
    code = dtype.code.lstrip("<>=|")
    return 1 if code == "?" else int(code[1:]) * (4 if code[0] == "U" else 1)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _number(value: Any) -> bool:
    return type(value) is int


def _sizes(node: Any) -> tuple[int, ...] | None:
    items = node.items if isinstance(node, Tupled | Plain) else None
    return items if items is not None and len(items) <= 64 and all(map(_whole, items)) else None


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# the calls: the machine and the arguments in, the value out; None if they are not as they must be


def _ordered(machine: Any, items: tuple[Any, ...]) -> Any:
    if items == ():
        return Mapped(ordered=True)
    pairs = items[0].items if len(items) == 1 and isinstance(items[0], Listed) else None
    two = pairs is not None and all(
        isinstance(p, Listed | Tupled) and len(p.items) == 2 and not loose(p) for p in pairs
    )
    return Mapped([tuple(p.items) for p in pairs], ordered=True) if two and pairs is not None else None


def _tensor(machine: Any, items: tuple[Any, ...]) -> Any:
    if len(items) not in (4, 6, 7) or not isinstance(items[0], Storage):
        return OPAQUE if items and isinstance(items[0], Opaque) else None
    shape, strides = _sizes(items[2]), _sizes(items[3])
    if not _whole(items[1]) or shape is None or strides is None or len(shape) != len(strides):
        return None
    # whether it wants a gradient, hooks that must be none, and metadata that must be none
    if len(items) > 4 and (type(items[4]) is not bool or not _no_hooks(items[5]) or items[6:] not in ((), (None,))):
        return None
    last = items[1] + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= items[0].count:
        machine.found(TENSOR_BOUNDS, f"element {last} of storage {items[0].key}, which has {items[0].count}")
    return Tensor(items[0], items[1], shape, strides)


def _no_hooks(node: Any) -> bool:
    return node is None or (isinstance(node, Mapped) and not node.pairs)


def _parameter(machine: Any, items: tuple[Any, ...]) -> Any:
    whole = len(items) == 3 and type(items[1]) is bool and _no_hooks(items[2])
    return items[0] if whole and isinstance(items[0], Tensor | Opaque) else None


def _size(machine: Any, items: tuple[Any, ...]) -> Any:
    sizes = _sizes(items[0]) if len(items) == 1 else None
    return None if sizes is None else Plain("size", sizes)


def _device(machine: Any, items: tuple[Any, ...]) -> Any:
    plain = 1 <= len(items) <= 2 and isinstance(items[0], str) and all(map(_whole, items[1:]))
    return Plain("device", items) if plain else None


def _layout(machine: Any, items: tuple[Any, ...]) -> Any:
    return Plain("layout") if items == ("torch.strided",) else None


def _dtype(machine: Any, items: tuple[Any, ...]) -> Any:
    if items and items[0] in ("O", "O8", "|O"):
        machine.found(PICKLE_OBJECTS, "an array of objects")
        return OPAQUE
    plain = 1 <= len(items) <= 3 and isinstance(items[0], str) and PLAIN_DTYPE.fullmatch(items[0])
    return Dtype(items[0]) if plain and all(type(item) in (bool, int) for item in items[1:]) else None


def _reconstruct(machine: Any, items: tuple[Any, ...]) -> Any:
    if len(items) != 3 or not isinstance(items[0], Import) or (items[0].module, items[0].name) != ("numpy", "ndarray"):
        return None
    return Array() if _sizes(items[1]) == (0,) and isinstance(items[2], Raw | str) else None


def _scalar(machine: Any, items: tuple[Any, ...]) -> Any:
    plain = len(items) == 2 and isinstance(items[0], Dtype) and isinstance(items[1], Raw)
    return Plain("scalar", items) if plain and _item_size(items[0]) == items[1].size else None


def _from_buffer(machine: Any, items: tuple[Any, ...]) -> Any:
    if (
        len(items) != 4
        or not isinstance(items[0], Raw)
        or not isinstance(items[1], Dtype)
        or items[3] not in ("C", "F")
    ):
        return None
    shape = _sizes(items[2])
    if shape is None or items[3] not in ("C", "F") or _count(shape) * _item_size(items[1]) != items[0].size:
        return None
    return Array(items[1], shape, items[3] == "F", items[0])


def _encode(machine: Any, items: tuple[Any, ...]) -> Any:
    # how protocols 0 to 2 write bytes: as text of the first 256 characters
    if len(items) != 2 or items[1] not in ("latin1", "latin-1"):
        return None
    text = items[0]
    if isinstance(text, Opaque):
        return OPAQUE
    size = machine.latin(text)
    return None if size is None else Raw(-1, size, text if isinstance(text, str) else None)


def _bytes(machine: Any, items: tuple[Any, ...]) -> Any:
    if items == ():
        return Raw(-1, 0, "")
    if len(items) == 1 and isinstance(items[0], Raw):
        return items[0]
    return _encode(machine, items)


def _set(machine: Any, items: tuple[Any, ...]) -> Any:
    return Listed(items[0].items, "set") if len(items) == 1 and isinstance(items[0], Listed) else None


def _range(machine: Any, items: tuple[Any, ...]) -> Any:
    plain = 1 <= len(items) <= 3 and all(item is None or type(item) is int for item in items)
    return Plain("range", items) if plain else None


def _complex(machine: Any, items: tuple[Any, ...]) -> Any:
    return Plain("complex", items) if len(items) == 2 and all(type(i) in (int, float) for i in items) else None


CALLS: dict[tuple[str, str], Callable[[Any, tuple[Any, ...]], Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch.serialization", "_get_layout"): _layout,
    ("numpy", "dtype"): _dtype,
    **{(module, "_reconstruct"): _reconstruct for module in NUMPY},
    **{(module, "scalar"): _scalar for module in NUMPY},
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    **{
        (module, name): call
        for module in ("builtins", "__builtin__")
        for name, call in (
            ("set", _set),
            ("frozenset", _set),
            ("bytearray", _bytes),
            ("bytes", _bytes),
            ("complex", _complex),
            ("range", _range),
            ("xrange", _range),
            ("slice", _range),
        )
    },
}
