"""A network on another device than the processor, for methods that hand it images and take logits back.

What a method holds, masks, recorded features and its own gradients, stays on the processor; only the passes through the
network are computed elsewhere. Float32 is float32 there: no reduced precision, and the same algorithm every time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vetgate.errors import DefenceError

CPU = "cpu"


def place(model: nn.Module, name: str) -> nn.Module:
    """The model with its weights on the device of this name, called and answering as before.

    Raises DefenceError where torch has no such device.
    """
    if name == CPU:
        return model
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
        model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DefenceError(
            f"expected a device that torch {torch.__version__} computes on, got {name}: {str(error).splitlines()[0]}; "
            "set VETGATE_DEVICE to another, or to cpu"
        ) from error
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True

    def there(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value.to(device) for value in inputs)

    def back(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return out.to(CPU)

    model.register_forward_pre_hook(there)
    model.register_forward_hook(back)
    return model
