from __future__ import annotations

import uuid
from datetime import timedelta
from pathlib import Path

import pytest

from tasks.records.ledger_state import ledger_state
from tasks.records.proven_time import moment_after
from tasks.settings import Settings
from vetgate.errors import WrongClock
from vetgate.trust.keys import utc_now


@pytest.mark.parametrize("wrong", [-timedelta(days=60), -timedelta(minutes=6), timedelta(days=1)])
def test_a_clock_that_the_clock_of_the_store_contradicts_proves_no_moment(
    tmp_path: Path, s3_endpoint: str, wrong: timedelta
) -> None:
    settings = Settings(home=tmp_path / "home", store=f"s3://vetgate/{uuid.uuid4().hex}", s3_endpoint=s3_endpoint)
    state, now = ledger_state(settings), utc_now()
    assert moment_after(state, now) == now
    with pytest.raises(WrongClock, match="expected the clock of the store") as caught:
        moment_after(state, now + wrong)
    assert caught.value.exit_code == 2
