"""Arrays as evidence packs them in JSON, read without torch: `vetgate.contract.pack` writes them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = {"float32": np.float32, "int64": np.int64, "bool": np.bool_}
LARGEST = 1 << 24


def array_of(blob: Mapping[str, Any], *, most: int | None = LARGEST) -> NDArray[Any]:
    """The array, of at most so many bytes, that evidence packed as {dtype, shape, base64}, read-only.

    Raises ValueError on anything else.
    """
    try:
        shape = [int(n) for n in blob["shape"]]
        raw = base64.b64decode(blob["base64"], validate=True)
        if (most is not None and len(raw) > most) or min(shape, default=1) < 0:
            raise ValueError(f"expected an array of at most {most} bytes, got {len(raw)} for {shape}")
        return np.frombuffer(raw, DTYPES[blob["dtype"]]).reshape(shape)
    except (KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"expected a packed array, got {error!r}") from error
