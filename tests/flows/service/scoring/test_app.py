"""A real server over a guarded model: it answers as the model does, refuses what is no images, and lives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pytest
import torch

from flows.production.predictions import FIELDS, prediction
from flows.service.scoring.app import Limits
from tests.flows.service.scoring.running import Running, comes, running
from tests.guarding import CLASSES, GUARD, SHAPE, VOTER, VOTING, guarded, images, served, split, triggered
from vetgate.errors import Stale
from vetgate.guard.guarded import Action

LIMITS = Limits(images=40, body=1 << 20, waiting=4, at_once=2)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(served(), limits=LIMITS) as up:
        yield up


def test_it_answers_what_the_guarded_model_says(server: Running) -> None:
    x = torch.cat([images(10, seed=5), triggered(images(10, seed=6))])
    expected = [prediction(answer, CLASSES) for answer in server.what.guarded.predict(x)]
    found = server.predictions(x)
    assert found == json.loads(json.dumps(expected)) and all(tuple(each) == FIELDS for each in found)
    assert {each["outcome"] for each in found[:10]} == {"accept"}
    assert {each["class"] for each in found[:10]} <= set(CLASSES)
    for each in found[10:]:
        assert (each["outcome"], each["label"], each["class"]) == ("reject", None, None)
        assert each["alarms"] == [GUARD] and isinstance(each["scores"][GUARD], float)


def test_the_forms_of_a_request_get_the_same_answers(server: Running) -> None:
    x = images(3, seed=8)
    frame = {"columns": ["image"], "data": [[image] for image in x.tolist()]}
    assert server.predictions({"instances": x.tolist()}) == server.predictions(x)
    assert server.predictions({"dataframe_split": frame}) == server.predictions(x)


def test_concurrent_requests_get_the_answers_of_sequential_ones() -> None:
    batches = [torch.cat([images(3, seed=n), triggered(images(2, seed=n))]) for n in range(24)]
    with running(served(), limits=replace(LIMITS, waiting=100)) as server:
        sequential = [server.predictions(x) for x in batches]
        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(server.predictions, batches)) == sequential


def test_an_answer_depends_on_its_own_image_only(server: Running) -> None:
    x = torch.cat([images(5, seed=9), triggered(images(3, seed=9))])
    singly = [server.predictions(x[row : row + 1])[0] for row in range(len(x))]
    together = server.predictions(x)
    assert [each["outcome"] for each in together] == [each["outcome"] for each in singly]
    for one, other in zip(together, singly, strict=True):
        assert one["scores"][GUARD] == pytest.approx(other["scores"][GUARD], abs=1e-4)


IMAGE: list[Any] = images(1).tolist()
MALFORMED: dict[str, tuple[Any, int, str]] = {
    "empty": (b"", 400, "expected JSON"),
    "no JSON": (b"\x00\x01", 400, "expected JSON"),
    "no images": ({"inputs": []}, 400, "expected images"),
    "another form": ({"images": IMAGE}, 400, "expected exactly one of"),
    "another shape": ({"inputs": torch.zeros(1, 3, 8, 8).tolist()}, 400, "got (1, 3, 8, 8)"),
    "ragged": ({"inputs": [[[[0, 1], [1]]]]}, 400, "ragged"),
    "NaN": (b'{"inputs": [[[[NaN]]]]}', 400, "finite"),
    "out of range": ({"inputs": (images(1) * 255).tolist()}, 400, "divide bytes by 255"),
    "too many": ({"inputs": IMAGE * 41}, 400, "at most 40 images"),
    "too large": (b" " * (1 << 21), 413, "expected at most"),
    "nested": (b'{"inputs": ' + b"[" * 50_000, 400, "at most 504 lists"),
    "without an end": (b'{"inputs": ' + b"[" * 500, 400, "expected JSON"),
    "many lists": (b'{"inputs":[' + b"[]," * 40_000 + b"[]]}", 400, "at most 40 images in a request, with at most 504"),
    "true": ({"inputs": [[[[True, 0.5] * 4] * 8]]}, 400, "expected numbers only"),
    "UTF-16": ('{"inputs": []}'.encode("utf-16"), 400, "expected JSON in UTF-8"),
    "a form twice": (b'{"inputs": [], "inputs": []}', 400, "a key given twice"),
}


@pytest.mark.parametrize(("asked", "status", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_refused_and_the_server_lives(
    server: Running, asked: Any, status: int, reason: str
) -> None:
    response = server.ask(asked)
    assert response.status_code == status and response.json().keys() == {"error_code", "message"}
    said = response.json()["message"]
    assert reason in said and "expected" in said and "got" in said and ";" in said
    assert "Traceback" not in response.text and len(response.text) < 1000
    assert len(server.predictions(IMAGE_OBJECT)) == 1


IMAGE_OBJECT = {"inputs": IMAGE}


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/csv"},
        {"content-type": ""},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json; format=pandas-split"},
        {"content-encoding": "gzip"},
    ],
)
def test_another_content_type_is_refused(server: Running, headers: dict[str, str]) -> None:
    response = server.client.post(
        "/invocations", content=json.dumps(IMAGE_OBJECT), headers={"content-type": "application/json", **headers}
    )
    assert response.status_code == 415 and "send JSON" in response.json()["message"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'])
def test_a_charset_of_utf_8_is_none_to_speak_of(server: Running, kind: str) -> None:
    assert server.ask(IMAGE_OBJECT, **{"content-type": kind}).status_code == 200


def test_a_body_in_chunks_is_refused_once_it_is_too_long(server: Running) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1 << 16
            yield b" " * (1 << 16)

    response = server.ask(chunks())
    assert response.status_code == 413 and "expected at most" in response.json()["message"]
    assert server.ask(iter([json.dumps(IMAGE_OBJECT).encode()])).status_code == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/invocations", 405), ("GET", "/docs", 404)])
def test_what_it_does_not_offer_is_refused(server: Running, method: str, path: str, status: int) -> None:
    assert server.client.request(method, path).status_code == status


@pytest.mark.parametrize("path", ["/ping", "/health"])
def test_it_says_that_it_serves(server: Running, path: str) -> None:
    assert server.client.get(path).status_code == 200


def test_it_says_which_protocol_it_speaks(server: Running) -> None:
    assert server.client.get("/version").text == version("mlflow")


def test_what_nothing_covers_any_more_is_not_served() -> None:
    with running(served()) as server:
        assert len(server.predictions(IMAGE_OBJECT)) == 1
        server.error = Stale("expected an attestation in force, got one that was revoked; vet again")
        server.current.ask_again()
        for response in (server.ask(IMAGE_OBJECT), server.client.get("/ping")):
            assert response.status_code == 503
        assert "revoked" in server.ask(IMAGE_OBJECT).json()["message"]
        assert server.counted("requests_total", outcome="uncovered") == 2
        server.error = None
        server.current.ask_again()
        assert len(server.predictions(IMAGE_OBJECT)) == 1


def test_more_than_may_wait_are_told_to_ask_again() -> None:
    inside, go = threading.Semaphore(0), threading.Event()

    def note(*seen: object) -> None:
        inside.release()
        go.wait(30)

    with running(served(), note, limits=LIMITS) as server, ThreadPoolExecutor(4) as pool:
        held = [pool.submit(server.ask, IMAGE_OBJECT) for _ in range(LIMITS.waiting)]
        # two are worked on, and two more wait behind them
        for _ in range(LIMITS.at_once):
            assert inside.acquire(timeout=30)
        assert comes(lambda: server.counted("requests_waiting") == LIMITS.waiting)
        answers = [server.ask(IMAGE_OBJECT) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {503}
        assert answers[0].headers["retry-after"] == "1" and "at most 4 requests" in answers[0].text
        assert server.client.get("/ping").status_code == 200
        go.set()
        assert [each.result().status_code for each in held] == [200] * LIMITS.waiting
        assert server.counted("requests_total", outcome="busy") >= 1


def test_a_fault_of_ours_leaves_no_traceback_and_the_server_lives() -> None:
    def fault(*seen: object) -> None:
        raise RuntimeError("a secret detail")

    with running(served(), fault) as server:
        response = server.ask(IMAGE_OBJECT)
        assert response.status_code == 500 and response.json()["error_code"] == "INTERNAL_ERROR"
        assert "secret" not in response.text and "Traceback" not in response.text
        assert server.client.get("/ping").status_code == 200


def test_what_it_counts() -> None:
    with running(served()) as server:
        server.predictions(torch.cat([images(4, seed=2), triggered(images(3, seed=2))]))
        server.ask({"inputs": []})
        assert server.counted("requests_total", outcome="answered") == 1
        assert server.counted("requests_total", outcome="refused") == 1
        assert server.counted("images_total", outcome="accept") == 4
        assert server.counted("images_total", outcome="reject") == 3
        assert server.counted("rejections_total", guard=GUARD) == 3
        assert server.counted("request_seconds_count") == 2
        text = server.client.get("/metrics")
        assert text.headers["content-type"].startswith("text/plain")
        assert f'vetgate_rejections_total{{guard="{GUARD}"}} 3.0' in text.text
        assert server.counted("covered_until_seconds") == server.what.until.timestamp()


def test_a_guard_that_never_alarmed_is_counted_too() -> None:
    with running(served()) as server:
        assert f'vetgate_rejections_total{{guard="{GUARD}"}} 0.0' in server.client.get("/metrics").text


def test_where_alarms_are_only_logged_the_label_stays() -> None:
    with running(served(Action.LOG_ONLY)) as server:
        (found,) = server.predictions(triggered(images(1)))
    assert (found["outcome"], found["label"], found["class"]) == ("accept", 0, CLASSES[0])
    assert found["alarms"] == [GUARD]


def test_a_vote_corrects_a_triggered_image_and_abstains_where_it_is_split() -> None:
    # of more contrast than those that the cut was set on, so that no vote is close by chance
    clean = (3 * images(20, seed=11) - 1).clamp(0, 0.95)
    x = torch.cat([clean, triggered(clean), split(clean)])
    with running(served(guarded=guarded(Action.VOTE, VOTING))) as server:
        with torch.no_grad():
            right = server.what.guarded.model(clean).argmax(1).tolist()
            assert server.what.guarded.model(triggered(clean)).argmax(1).tolist() == [0] * 20
        found = server.predictions(x)
        assert [each["label"] for each in found[:40]] == right * 2
        assert {each["outcome"] for each in found[:40]} == {"accept"}
        assert all(each["alarms"] == [VOTER] for each, label in zip(found[20:40], right, strict=True) if label != 0)
        assert {(each["outcome"], each["label"], each["class"]) for each in found[40:]} == {("abstain", None, None)}
        assert all(0.3 < each["score"] < 0.8 for each in found[40:])
        assert server.counted("images_total", outcome="accept") == 40
        assert server.counted("images_total", outcome="abstain") == 20
        assert server.counted("images_total", outcome="reject") == 0
        alarms = sum(bool(each["alarms"]) for each in found)
        assert server.counted("rejections_total", guard=VOTER) == alarms >= 10


def test_no_answer_holds_a_number_that_json_has_not() -> None:
    what = served()
    what.guarded.model.register_forward_hook(lambda module, given, out: out * float("nan"))
    with running(what) as server:
        response = server.ask(torch.zeros(1, *SHAPE))
    (found,) = json.loads(response.text, parse_constant=lambda name: pytest.fail(name))["predictions"]
    assert (found["outcome"], found["label"], found["scores"][GUARD]) == ("reject", None, None)
