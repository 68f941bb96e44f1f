"""Keras: the configuration of a model, layer by layer, and HDF5 files, which are searched for one."""

from __future__ import annotations

import json
import re
from typing import Any

from vetgate.scan.inspection import Place
from vetgate.scan.rules import KERAS_CODE, PARTLY_READ
from vetgate.scan.source import Source

HDF5 = b"\x89HDF\r\n\x1a\n"
# modules that Keras writes for its own objects; keras.utils has functions that reach the network and the disk
MODULE = re.compile(
    r"keras(\.src)?(\.(layers|initializers|regularizers|constraints|optimizers|losses|metrics|activations|models|"
    r"dtype_policies|applications|engine|preprocessing)(\.\w+)*)?|builtins|tensorflow\.keras\.\w+"
)
# layers that unmarshal bytecode, unpickle, or load another program
RUNNING = (
    "Lambda", "__lambda__", "lambda", "TFOpLambda", "SlicingOpLambda", "TorchModuleWrapper", "TFSMLayer", "JaxLayer",
    "FlaxLayer",
)  # fmt: skip
CHUNK = 1 << 20
OVERLAP = 256
IN_HDF5 = re.compile(
    rb'"class_name"\s*:\s*"(?:[^"\\\x00]{0,40}(?:L|\\u004[cC])ambda"|__lambda__|TorchModuleWrapper|TFSMLayer)|'
    rb'"registered_name"\s*:\s*"[^"]{1,80}>|"module"\s*:\s*"(?:os|posix|subprocess|builtins\.|sys|importlib|shutil)[".]'
)


def check_layer(value: dict[str, Any], at: Place) -> None:
    """Look at one object of a configuration, which has a class name."""
    name, module, registered = value["class_name"], value.get("module"), value.get("registered_name")
    config = value.get("config")
    if name in RUNNING:
        at.found(KERAS_CODE, f"{name}: {_shown(config)}")
    # a vocabulary is a list, or the path of a file, which may be any file or address
    if isinstance(config, dict) and isinstance(config.get("vocabulary"), str):
        at.found(KERAS_CODE, f"{name} that reads {config['vocabulary']}")
    if isinstance(module, str) and (not MODULE.fullmatch(module) or (module == "builtins" and name != "function")):
        at.found(KERAS_CODE, f"{module}.{name}")
    elif name == "function" and module not in (None, "builtins"):
        at.found(KERAS_CODE, f"the function {module}.{_shown(config)}")
    # a registered class of one's own is named package>class
    if isinstance(registered, str) and ">" in registered:
        at.found(KERAS_CODE, f"registered as {registered}")


def read_hdf5(source: Source, at: Place) -> None:
    """Search an HDF5 file for a configuration with code; what is found is malicious, and nothing is no proof."""
    at.found(PARTLY_READ, "HDF5")
    kept = b""
    for place in range(0, source.size, CHUNK):
        piece = kept + source.read(place, min(CHUNK, source.size - place))
        if found := IN_HDF5.search(piece):
            at.found(KERAS_CODE, found[0].decode("latin-1"))
            return
        kept = piece[-OVERLAP:]


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]
