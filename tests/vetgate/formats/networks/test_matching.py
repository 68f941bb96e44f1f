"""Tensors of other names are matched in their order, strictly, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vetgate.errors import NotUnderstood
from vetgate.formats.networks.matching import by_name, by_order, unwrapped

COUNTED = "num_batches_tracked"


def expected() -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    return dict(net.state_dict())


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"own{name}": torch.rand_like(tensor.float()).to(tensor.dtype) for name, tensor in tensors.items()}


def test_each_tensor_gets_the_name_at_its_place() -> None:
    given = renamed(expected())
    found = by_order(given, expected(), "net")
    assert list(found) == list(expected()) and all(torch.equal(found[name], given[f"own{name}"]) for name in found)


def test_what_counts_batches_may_be_missing_altogether() -> None:
    for match, given in ((by_order, renamed(expected())), (by_name, expected())):
        kept = {name: tensor for name, tensor in given.items() if COUNTED not in name}
        found = match(kept, expected(), "net")
        assert list(found) == list(expected()) and int(found[f"1.{COUNTED}"]) == 0


def test_parts_that_torch_names_are_matched_as_these_only() -> None:
    names = list(given := renamed(expected()))
    mean, bias = names.index("own1.running_mean"), names.index("own1.bias")
    names[mean], names[bias] = names[bias], names[mean]
    with pytest.raises(NotUnderstood, match=r"own1\.running_mean of shape \(4,\) where it has 1\.bias"):
        by_order({name: given[name] for name in names}, expected(), "net")


def test_names_without_such_parts_are_taken_in_order() -> None:
    given = {f"layer/{number}": tensor for number, tensor in enumerate(expected().values()) if tensor.ndim}
    assert list(by_order(given, expected(), "net")) == list(expected())


def test_more_or_fewer_or_other_tensors_are_refused_with_the_first_that_differ() -> None:
    given = renamed(expected())
    last = next(reversed(given))
    for changed, said in (
        ({**given, "more": torch.zeros(1)}, "first 8 fit"),
        ({name: tensor for name, tensor in given.items() if name != last}, "first 7 fit"),
        ({**given, last: torch.zeros(5)}, r"own3\.bias of shape \(5,\) where it has 3\.bias of shape \(3,\)"),
        ({**given, last: torch.zeros(3, dtype=torch.int64)}, r"own3\.bias"),
        ({name: tensor.flatten() for name, tensor in given.items()}, r"own0\.weight of shape \(36,\)"),
    ):
        with pytest.raises(NotUnderstood, match=said):
            by_order(changed, expected(), "net")


def test_by_name_it_says_where_the_order_would_fit() -> None:
    with pytest.raises(NotUnderstood, match="match_weights_by: order"):
        by_name(renamed(expected()), expected(), "net")
    with pytest.raises(NotUnderstood, match="name the network"):
        by_name({"w": torch.zeros(1)}, expected(), "net")


def test_what_stands_before_every_name_is_left_out() -> None:
    wrapped = {f"module._orig_mod.model.{name}": tensor for name, tensor in expected().items()}
    assert list(unwrapped(wrapped)) == list(expected())
    assert list(by_name(wrapped, expected(), "net")) == list(expected())
    assert unwrapped({"module.a": 1, "b": 2}) == {"module.a": "module.a", "b": "b"} and not unwrapped({})
