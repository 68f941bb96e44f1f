"""The levels of the sandbox as parameters of a test; one that this host does not give is skipped, and says why."""

from __future__ import annotations

import pytest

from tasks.sandbox.host import available_level
from tests import system

WITHOUT = "bubblewrap may not run here" if system.BUBBLEWRAP.there() else system.BUBBLEWRAP.reason
FILTERED = [
    pytest.param(1, marks=pytest.mark.skipif(available_level() < 1, reason="no filter of system calls here")),
    pytest.param(2, marks=pytest.mark.skipif(available_level() < 2, reason=WITHOUT)),
]
LEVELS = [0, *FILTERED]
