"""Random damage to sound files: refused or loaded, nothing else, and never slow."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from safetensors.torch import save

from vetgate.architectures import ARCHITECTURES
from vetgate.errors import NotUnderstood
from vetgate.formats.load import load_model

ROUNDS = 400


def damaged(data: bytes, dice: random.Random) -> bytes:
    """The bytes with a few flipped, cut off, doubled, dropped or replaced by a large length."""
    out = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(out)) if out else 0
        match dice.randrange(6):
            case 0:
                del out[at:]
            case 1:
                out[at : at + 1] = bytes([dice.randrange(256)])
            case 2:
                out[at:at] = out[at : at + dice.randint(1, 40)]
            case 3:
                del out[at : at + dice.randint(1, 8)]
            case 4:
                out[at : at + 5] = b"\xff\xff\xff\xff\x0f"
            case _:
                out[at : at + 1] = bytes([(out[at] if out else 0) ^ (1 << dice.randrange(8))])
    return bytes(out)


@pytest.mark.parametrize("form", ["onnx", "onnx without its weights", "safetensors"])
def test_damage_is_refused_or_harmless(form: str, cnn: Any, submit: Callable[..., Any]) -> None:
    dice = random.Random(form)
    fields: dict[str, Any] = {}
    data = cnn.SerializeToString()
    cut = len(data)
    if form == "safetensors":
        data = save(ARCHITECTURES["small-cnn"]((1, 8, 8), 3).state_dict())
        cut = 8 + int.from_bytes(data[:8], "little")
        fields = {"model": "model.safetensors", "format": "safetensors", "architecture": "small-cnn"}
    elif form == "onnx without its weights":
        # the operators lie in front of the weights: damage there is what reaches the graph's checks
        cut = data.index(b"mean") + 600
    directory, submission = submit(data, **fields)
    refusals = 0
    for _ in range(ROUNDS):
        (directory / submission.model).write_bytes(damaged(data[:cut], dice) + data[cut:])
        start = time.process_time()
        try:
            load_model(directory, submission)
        except NotUnderstood:
            refusals += 1
        assert time.process_time() - start < 5
    assert refusals > ROUNDS / 4


def test_a_million_empty_fields_are_not_walked_for_long(submit: Callable[..., Any]) -> None:
    directory, submission = submit(b"\x72\x00" * 5_000_000)
    start = time.process_time()
    with pytest.raises(NotUnderstood, match="fields"):
        load_model(directory, submission)
    assert time.process_time() - start < 20
