"""Seeds: what detectors draw from, so that no supplier can know or choose it, and what stands for a seed in the store.

A seed follows from a secret of the installation, the manifest and the run. A commitment binds evidence to it: who holds
the secret computes both; to everybody else the commitment is a random number, from which 53 bits cannot be searched.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from vetgate.digest import canonical_json

# known to all and the same everywhere, so that a demonstration ends alike in every installation
DEMONSTRATION = "demonstration "


@dataclass(frozen=True)
class Seed:
    """The seed of one run: `number`, which is kept from the store, and the 64 hex digits that stand there for it."""

    number: int
    commitment: str


@dataclass(frozen=True)
class Seeds:
    """The seeds of an installation with this secret."""

    secret: bytes

    def seed(self, manifest: str, run: str = "", origin: str = "") -> Seed:
        """The seed of a run ("" is the first) on a submission.

        It is drawn from `origin` instead of the manifest where one is given: "demonstration <n>", whose first run has
        the seed n, and what is repaired in the course of it.
        """
        number = None if run else _number(origin)
        if number is None:
            secret = DEMONSTRATION.encode() if origin.startswith(DEMONSTRATION) else self.secret
            # of a first run the manifest alone, which is no JSON list: no two purposes share a message
            first = hmac.digest(secret, manifest.encode(), "sha256")
            digest = _digest(secret, "seed", origin or manifest, run) if origin or run else first
            # 53 bits, which every JSON reader holds exactly
            number = int.from_bytes(digest[:8], "big") >> 11
        return Seed(number, _digest(self.secret, "commitment", manifest, run, str(number)).hex())

    def seal(self, manifest: str, origin: str) -> str:
        """64 hex digits by which the installation knows that the origin of a submission's seeds comes from itself."""
        return _digest(self.secret, "origin", manifest, origin).hex()

    def sealed(self, manifest: str, origin: str, seal: str) -> bool:
        """Whether this installation made the seal."""
        return hmac.compare_digest(self.seal(manifest, origin).encode(), seal.encode("utf-8", "surrogatepass"))


def _number(origin: str) -> int | None:
    """The n of "demonstration <n>"; None for any other origin."""
    given = origin.removeprefix(DEMONSTRATION)
    return int(given) if given != origin and re.fullmatch("[0-9]{1,15}", given) else None


def _digest(secret: bytes, *parts: str) -> bytes:
    # as JSON, so that no two lists of parts run into the same bytes
    return hmac.digest(secret, canonical_json(parts), "sha256")
