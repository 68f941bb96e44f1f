"""An ONNX file as onnxruntime computes it, held against what our module of its graph computes.

The file is what is served, by runtimes that merge and reorder its operators. A file on which such a runtime and our
reading of it differ is not the network that was vetted, and has no figures.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from vetgate.errors import DefenceError
from vetgate.formats.onnx.graph import check_description, parse_model, read_graph
from vetgate.formats.onnx.module import build_module
from vetgate.formats.submission import Submission

# of the spread of a batch's outputs: float32 in another order stays far below, an operator read otherwise does not
TOLERANCE = 1e-4
NO_MEMORY = ("bad_alloc", "Failed to allocate", "bad allocation")


class RuntimeModule(nn.Module):
    """The outputs (B, K) of onnxruntime for images (B, C, H, W), a final softmax included.

    Raises DefenceError where it cannot run the file, or where `ours`, the graph in torch, gives others.
    """

    def __init__(self, data: bytes, ours: nn.Module, to_input: nn.Module) -> None:
        super().__init__()
        self.ours, self.to_input = ours, to_input
        try:
            self._session = onnxruntime.InferenceSession(data, _options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class in common but this
            raise _cannot_run(error) from error
        (given,) = self._session.get_inputs()
        self._name, size = given.name, given.shape[0]
        self._batch = size if isinstance(size, int) else None

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """What the file gives for x."""
        ours, theirs = self.ours(x), self._run(self.to_input(x).contiguous().numpy())
        if theirs.shape != ours.shape:
            raise _differ(f"an output of shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}")
        gap, spread = float((theirs - ours).abs().max()), float(ours.max() - ours.min())
        if not gap <= TOLERANCE * spread:
            raise _differ(f"outputs that are off by {gap:.2g} where they spread over {spread:.2g}")
        return theirs

    def _run(self, images: np.ndarray) -> Tensor:
        # a graph may be made for batches of one size: the last of them is filled up
        count, size = len(images), self._batch or len(images)
        filled = np.concatenate([images, np.repeat(images[-1:], -count % size, axis=0)])
        try:
            parts = [self._session.run(None, {self._name: part})[0] for part in np.split(filled, len(filled) // size)]
            return torch.from_numpy(np.concatenate(parts)[:count])
        except Exception as error:
            raise _cannot_run(error) from error


def as_served(data: bytes, submission: Submission) -> RuntimeModule:
    """The network in the bytes of a file, as onnxruntime computes it from these very bytes."""
    graph = read_graph(parse_model(data))
    ours = build_module(graph, channels_last=check_description(graph, submission), strip=False)
    return RuntimeModule(data, ours, ours.input).eval()


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


def _differ(got: str) -> DefenceError:
    return DefenceError(
        f"expected onnxruntime to compute what our reading of the file does, got {got}; export the model without "
        "operators or weights that lose so much in float32"
    )
