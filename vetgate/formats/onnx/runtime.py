"""An ONNX file as onnxruntime computes it, held against what our module of its graph computes.

The file is what is served, by runtimes that merge and reorder its operators. A file on which such a runtime and our
reading of it differ is not the network that was vetted, and has no figures.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from vetgate.errors import DefenceError
from vetgate.formats.manifest import Bytes
from vetgate.formats.onnx.pieces import whole

# of the spread of a batch's outputs: float32 in another order stays far below, an operator read otherwise does not
TOLERANCE = 1e-4
# some steps of float32
RESOLUTION = 2.0**-20
DTYPES = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
NO_MEMORY = ("bad_alloc", "Failed to allocate", "bad allocation")


class Session:
    """An ONNX file in onnxruntime; raises DefenceError where that cannot load or run it.

    `beside` are files that hold its weights, by name; `output` is the one that is asked for where there are several.
    """

    def __init__(
        self,
        data: Bytes,
        *,
        optimised: bool = True,
        beside: Mapping[str, Bytes] | None = None,
        output: str | None = None,
    ) -> None:
        options = _options()
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        files = {name: whole(held) for name, held in (beside or {}).items()}
        if files:
            # in memory: no path is read
            options.add_external_initializers_from_files_in_memory(
                list(files), list(files.values()), [len(held) for held in files.values()]
            )
        try:
            self._session = onnxruntime.InferenceSession(whole(data), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class in common but this
            raise _cannot_run(error) from error
        (given,) = self._session.get_inputs()
        self._name, size = given.name, given.shape[0]
        self._dtype = DTYPES.get(given.type, np.float32)
        self._outputs = None if output is None else [output]
        self.batch = size if isinstance(size, int) and size > 0 else None

    def run(self, x: Tensor) -> Tensor:
        """The outputs (B, K) for images (B, ...) as the file takes them."""
        images = x.contiguous().numpy().astype(self._dtype)
        # a graph may be made for batches of one size: the last of them is filled up
        count, size = len(images), self.batch or len(images)
        filled = np.concatenate([images, np.repeat(images[-1:], -count % size, axis=0)])
        batches = np.split(filled, len(filled) // size)
        try:
            parts = [self._session.run(self._outputs, {self._name: part})[0] for part in batches]
            return torch.from_numpy(np.concatenate(parts)[:count].astype(np.float32))
        except Exception as error:
            raise _cannot_run(error) from error


class RuntimeModule(nn.Module):
    """The outputs (B, K) of onnxruntime for images (B, C, H, W), a final softmax included.

    Raises DefenceError where it cannot run the file, or where `ours`, the graph in torch, gives others.
    """

    def __init__(self, data: Bytes, ours: nn.Module) -> None:
        super().__init__()
        self.ours = ours
        self._session = Session(data)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """What the file gives for x."""
        ours, theirs = self.ours(x), self._session.run(x)
        if (got := difference(ours, theirs)) is not None:
            raise DefenceError(
                f"expected onnxruntime to compute what our reading of the file does, got {got}; export the model "
                "without operators or weights that lose so much in float32"
            )
        return theirs


def difference(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> str | None:
    """By how much two outputs (B, K) for the same images differ beyond the rounding of float32, or None."""
    if theirs.shape != ours.shape:
        return f"an output of shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}"
    gap, spread = float((theirs - ours).abs().max()), float(ours.max() - ours.min())
    # outputs that are all but alike still carry the resolution of their own size
    if gap <= max(tolerance * spread, RESOLUTION * float(ours.abs().max()), torch.finfo(torch.float32).tiny):
        return None
    return f"outputs that are off by {gap:.2g} where they spread over {spread:.2g}"


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    # its own arena doubles, and address space is limited; threads that spin take the core of others
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _cannot_run(error: Exception) -> Exception:
    said = str(error)[:300]
    if any(words in said for words in NO_MEMORY):
        return MemoryError(said)
    return DefenceError(f"expected a file that onnxruntime can run, got: {said}; export the model for it")
