"""Libraries that build networks and that not every installation has: imported in the sandbox, where they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from vetgate.errors import NotUnderstood

# what torchvision names on import, and only its own build for the installed torch has
OPERATORS = ("nms", "qnms")


def import_builder(library: str, extra: str) -> ModuleType:
    """The library; raises NotUnderstood with the extra of vetgate that installs it where it is not there.

    Also where torchvision, which it imports, was built for another torch: classifiers need none of its operators.
    """
    import torch

    try:
        importlib.import_module("torchvision")
    except ImportError:
        pass  # not every version of the library needs it
    except RuntimeError:
        for name in OPERATORS:
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise NotUnderstood(
            f"expected the library {library} to build the network, got none; install vetgate as vetgate[{extra}] where "
            "vettings run, or hand in the network as ONNX"
        ) from error
