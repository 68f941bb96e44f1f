"""Members of the bank that `python -m flows.bank.stage fill` has trained, with their data, as benchmarks take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flows.bank.data import Source, source
from flows.bank.networks import OPEN, Member, member_file, members, plan
from flows.bank.train import Network, load
from flows.params import load_params
from tasks.settings import Settings


def members_to_measure() -> list[Member]:
    """The open members; patches that only fool a clean network are no backdoors."""
    return [m for m in members().values() if plan().group(m.name) == OPEN and m.attack != "adversarial_patch"]


def trained(settings: Settings, wanted: Sequence[Member]) -> Iterator[tuple[Member, Source, Network]]:
    """Those of the wanted members whose weights lie under the home, one at a time."""
    sizes, sources = load_params().data, dict[str, Source]()
    for member in wanted:
        recipe = plan().sets[member.data]
        if member.data not in sources:
            sources[member.data] = source(settings, member.data, sizes, recipe.images)
        data = sources[member.data]
        weights = member_file(settings.home / "bank", member, recipe, data.ref.sha256)
        if weights.with_suffix(".json").exists():
            yield member, data, load(weights, member, data.shape, data.classes)
