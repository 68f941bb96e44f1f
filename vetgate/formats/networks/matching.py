"""The tensors of a file as those of a network: by their names, or in their order where the file has names of its own.

By order means strictly so: as many, each of the same shape, and what torch names by its part (weight, bias, mean and
variance) only as that part. Nothing in a file tells which network it was trained for: padding or the epsilon of a batch
normalisation may differ where all shapes fit. Only accuracy on trusted images shows that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vetgate.errors import NotUnderstood

if TYPE_CHECKING:
    from torch import Tensor

# what DataParallel, torch.compile and Lightning put before every name
WRAPPERS = ("module.", "_orig_mod.", "model.")
# how many batches a batch normalisation has seen: nothing reads it, and files of older versions have none
COUNTER = "num_batches_tracked"
PARTS = ("weight", "bias", "running_mean", "running_var", COUNTER)
MOST_NAMED = 3


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Each name without what wraps all of them, to the name as it is."""
    found = {name: name for name in names}
    while wrapper := next((each for each in WRAPPERS if found and all(n.startswith(each) for n in found)), None):
        found = {name.removeprefix(wrapper): given for name, given in found.items()}
    return found


def by_name(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """The tensors by the names that the network has; raises NotUnderstood unless they are exactly its own."""
    given = {name: tensors[own] for name, own in unwrapped(tensors).items()}
    wanted = _wanted(given, expected)
    if set(given) != set(wanted):
        missing, extra = sorted(set(wanted) - set(given))[:5], sorted(set(given) - set(wanted))[:5]
        fits = not _differing(tensors, wanted)
        remedy = "its tensors fit in their order: if it is of this very network, say match_weights_by: order"
        raise NotUnderstood(
            f"expected the weights of {network}, got others: missing {missing}, extra {extra}; "
            f"{remedy if fits else 'name the network that the file is of'}"
        )
    for name, like in wanted.items():
        if not _alike(given[name], like):
            raise NotUnderstood(
                f"expected {name} of shape {tuple(like.shape)} for {network} with this input_shape and classes, got "
                f"{given[name].dtype} of shape {tuple(given[name].shape)}; correct submission.yaml"
            )
    return _complete(given, expected)


def by_order(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """The tensors by the names that the network has at the same places; raises NotUnderstood where one differs."""
    wanted = _wanted(tensors, expected)
    if differing := _differing(tensors, wanted):
        raise NotUnderstood(
            f"expected the {len(wanted)} tensors of {network} in its order, got {len(tensors)}: "
            f"{'; '.join(differing[:MOST_NAMED])}; "
            "name the network that the file is of, and its classes, or save it with its names"
        )
    return _complete(dict(zip(wanted, tensors.values(), strict=True)), expected)


def fits_in_order(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether `by_order` takes them."""
    return not _differing(tensors, _wanted(tensors, expected))


def _wanted(given: Iterable[str], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    counted = any(_part(name) == COUNTER for name in given)
    return {name: like for name, like in expected.items() if counted or _part(name) != COUNTER}


def _complete(found: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch

    return {name: found[name] if name in found else torch.zeros(like.shape, dtype=like.dtype)
            for name, like in expected.items()}  # fmt: skip


def _differing(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """In words, each place at which the network has something else, and how many more one of the two has."""
    pairs = zip(tensors.items(), wanted.items(), strict=False)
    found = [
        f"{own} of shape {tuple(tensor.shape)} where it has {name} of shape {tuple(like.shape)}"
        for (own, tensor), (name, like) in pairs
        if not _alike(tensor, like) or (_part(own) in PARTS and _part(own) != _part(name))
    ]
    return found if found or len(tensors) == len(wanted) else [f"the first {min(len(tensors), len(wanted))} fit"]


def _part(name: str) -> str:
    return name.rpartition(".")[2]


def _alike(tensor: Tensor, like: Tensor) -> bool:
    return tensor.shape == like.shape and tensor.is_floating_point() == like.is_floating_point()
