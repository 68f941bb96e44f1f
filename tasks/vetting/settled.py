"""Which submissions a sweep need not look at again: a cache in the home, so that a sweep reads only what is new.

What is settled stays settled, so a set of manifests is enough. It is begun anew every day, and when it is lost; one
that names too much keeps a submission from being started by itself, and lets nothing through.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256

from tasks.settings import Settings
from vetgate.errors import StoreError

MANIFEST = re.compile(r"[0-9a-f]{64}")


class Settled:
    """The manifests of one `kind` that are settled in the settings' store; `add` keeps more of them."""

    def __init__(self, settings: Settings, kind: str) -> None:
        where = sha256(settings.store.encode()).hexdigest()[:16]
        self._folder, self._stem = settings.home / "sweep", f"{kind}-{where}-"
        self._path = self._folder / f"{self._stem}{datetime.now(UTC).date().isoformat()}.txt"
        try:
            lines = self._path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise StoreError(f"expected to read {self._path}, got {error.strerror}; check the disk") from error
        self._known = {line for line in lines if MANIFEST.fullmatch(line)}

    def __contains__(self, manifest: str) -> bool:
        return manifest in self._known

    def add(self, manifests: Iterable[str]) -> None:
        """Keep more of them, for the sweeps of this day."""
        fresh = sorted(set(manifests) - self._known)
        if not fresh:
            return
        self._known.update(fresh)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for old in self._folder.glob(f"{self._stem}*.txt"):
                if old != self._path:
                    with suppress(FileNotFoundError):
                        old.unlink()
            # whole lines, appended: several sweeps at once only repeat each other
            with self._path.open("a") as file:
                file.write("".join(f"\n{manifest}" for manifest in fresh) + "\n")
        except OSError as error:
            raise StoreError(f"expected to write {self._path}, got {error.strerror}; check the disk") from error
