"""Rejected images are kept, and a rise of alarms over the stated rate is told of once."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flows.service.scoring import aftermath
from flows.service.scoring.aftermath import Aftermath
from flows.service.scoring.current import Served
from flows.service.scoring.metrics import Metrics
from tasks import events
from tasks.rejected import FOLDER, kept, picture
from tasks.settings import Settings
from tests.alarms import told
from tests.flows.service.scoring.running import comes, running
from tests.guarding import CLASSES, GUARD, MANIFEST, images, served, triggered
from vetgate.guard.alarm_rate import EVERY, WINDOW
from vetgate.guard.guarded import Action


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def noted(settings: Settings, what: Served, x: torch.Tensor, metrics: Metrics | None = None) -> Metrics:
    """What is counted once the answers to images x were noted, and all that waits was kept."""
    metrics = metrics or Metrics([GUARD])
    after = Aftermath(settings, metrics)
    after.start()
    after.note(what, x, what.guarded.predict(x))
    after.close()
    return metrics


def test_what_was_rejected_over_http_is_kept_with_its_image(settings: Settings) -> None:
    metrics = Metrics([GUARD])
    after = Aftermath(settings, metrics)
    after.start()
    bad = triggered(images(2, seed=3))
    with running(served(), after.note, metrics=metrics) as server:
        server.predictions(torch.cat([images(3, seed=3), bad]))
        assert comes(lambda: len(kept(settings.home)) == 2)
    after.close()
    found = kept(settings.home, "quarters")
    for item in found:
        said = item.rejection
        assert (said.name, said.version, said.manifest, said.outcome) == ("quarters", "3", MANIFEST, "reject")
        assert (said.said, said.said_class, said.alarms) == (0, CLASSES[0], (GUARD,))
        assert said.scores[GUARD] is not None and said.scores[GUARD] > said.cuts[GUARD]
    pictures = {np.asarray(Image.open(io.BytesIO(picture(item) or b""))).tobytes() for item in found}
    assert pictures == {np.rint(image[0].numpy() * 255).astype(np.uint8).tobytes() for image in bad}


def test_alarms_that_are_only_logged_are_kept_too(settings: Settings) -> None:
    noted(settings, served(Action.LOG_ONLY), triggered(images(1)))
    (found,) = kept(settings.home)
    assert (found.rejection.outcome, found.rejection.action) == ("accept", "log-only")


def test_what_was_accepted_is_not_kept(settings: Settings) -> None:
    noted(settings, served(), images(5, seed=3))
    assert not (settings.home / FOLDER).exists()


def test_what_comes_too_fast_or_finds_no_room_is_counted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    what, x = served(), triggered(images(5))
    monkeypatch.setattr(aftermath, "WAITING", 2)
    metrics = Metrics([GUARD])
    Aftermath(settings, metrics).note(what, x, what.guarded.predict(x))
    assert metrics.registry.get_sample_value("vetgate_rejections_not_kept_total") == 3
    monkeypatch.undo()
    (settings.home / FOLDER).write_text("a file")
    assert noted(settings, what, x).registry.get_sample_value("vetgate_rejections_not_kept_total") == 5


def test_a_rise_is_told_of_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    what, metrics = served(), Metrics([GUARD])
    answers = what.guarded.predict(triggered(images(EVERY)))
    after, x = Aftermath(settings, metrics), images(EVERY)
    monkeypatch.setattr(after._waiting, "put_nowait", lambda item: None)
    with told(monkeypatch) as taken:
        for _ in range(2 * WINDOW // EVERY):
            after.note(what, x, answers)
        assert comes(lambda: bool(taken))
        time.sleep(0.2)
        (event,) = taken
    assert event["event"] == events.REJECTIONS_ROSE == "vetgate.guard.rejections_rose"
    assert event["resource"] == {"prefect.resource.id": "vetgate.production.quarters"}
    assert event["payload"] == {
        "name": "quarters",
        "version": "3",
        "manifest_sha256": MANIFEST,
        "rejected": EVERY,
        "images": EVERY,
        "rate": what.rate,
    }
    # the second window's is counted, and comes within the hour
    assert metrics.registry.get_sample_value("vetgate_rejections_rose_total") == 2


def test_the_stated_rate_is_no_rise(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    what, metrics = served(), Metrics([GUARD])
    with told(monkeypatch) as taken:
        for seed in range(20):
            noted(settings, what, images(EVERY, seed=100 + 2 * seed), metrics)
        assert taken == []
    assert metrics.registry.get_sample_value("vetgate_rejections_rose_total") == 0


def test_another_version_begins_anew(settings: Settings) -> None:
    what, metrics = served(), Metrics([GUARD])
    after, x = Aftermath(settings, metrics), images(EVERY // 2)
    alarmed = what.guarded.predict(triggered(x))
    after.note(what, x, alarmed)
    after.note(replace(what, attestation="c" * 64), x, alarmed)
    assert metrics.registry.get_sample_value("vetgate_rejections_rose_total") == 0
    after.note(replace(what, attestation="c" * 64), x, alarmed)
    assert metrics.registry.get_sample_value("vetgate_rejections_rose_total") == 1


def test_a_rise_of_another_version_is_told_of_at_once_and_of_each_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, metrics = served(), Metrics([GUARD])
    second = replace(first, version="4", attestation="c" * 64)
    after, x = Aftermath(settings, metrics), images(EVERY)
    monkeypatch.setattr(after._waiting, "put_nowait", lambda item: None)
    alarmed = first.guarded.predict(triggered(x))
    with told(monkeypatch) as taken:
        for what in (first, second, first, second):
            after.note(what, x, alarmed)
        assert comes(lambda: len(taken) == 2)
        time.sleep(0.2)
        assert sorted(event["payload"]["version"] for event in taken) == ["3", "4"]
    assert metrics.registry.get_sample_value("vetgate_rejections_rose_total") == 4
