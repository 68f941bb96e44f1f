from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.settings import Settings
from tasks.store import base
from tasks.store.base import BadKey, Changed, Store
from tasks.store.directory import ABANDONED_SECONDS, DirectoryStore
from tasks.store.open import open_store
from tests.processes import in_processes
from vetgate.errors import Denied, StoreError

FORK = multiprocessing.get_context("fork")
MIB = 1 << 20


def again(store: Store) -> Store:
    """The same store opened anew, as another process would."""
    if isinstance(store, DirectoryStore):
        return open_store(str(store.root))
    return open_store(store.url("x").removesuffix("/x"), endpoint=os.environ["TEST_S3_ENDPOINT"])


@pytest.fixture(autouse=True)
def endpoint_for_children(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "[s3]" in request.node.name:
        monkeypatch.setenv("TEST_S3_ENDPOINT", request.getfixturevalue("s3_endpoint"))


def test_what_was_created_is_read_back(store: Store) -> None:
    assert store.create("verdicts/a/1.json", b"{}")
    assert store.read("verdicts/a/1.json") == b"{}"
    assert store.exists("verdicts/a/1.json")
    assert store.read_tagged("verdicts/a/1.json") == (b"{}", store.etag("verdicts/a/1.json"))


def test_the_second_creator_is_told_and_changes_nothing(store: Store) -> None:
    assert store.create("k", b"first")
    assert not store.create("k", b"second")
    assert not again(store).create("k", b"first")
    assert store.read("k") == b"first"


def test_what_is_not_there_is_a_key_error(store: Store, tmp_path: Path) -> None:
    store.create("there/file", b"")
    for absent in ("nothing", "there", "there/file/below"):
        assert not store.exists(absent)
        for ask in (store.read, store.read_tagged, store.etag):
            with pytest.raises(KeyError):
                ask(absent)
        with pytest.raises(KeyError):
            store.fetch(absent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_eight_processes_race_for_one_key_and_one_wins(store: Store) -> None:
    for round_ in range(3 if isinstance(store, DirectoryStore) else 1):
        key = f"race/{round_}"

        def race(i: int, key: str = key) -> tuple[bool, bytes]:
            mine = again(store)
            won = mine.create(key, bytes([i]) * 200_000)
            return won, mine.read(key)

        answers = in_processes(8, race)
        winners = [i for i, (won, _) in enumerate(answers) if won]
        assert len(winners) == 1
        assert {data for _, data in answers} == {bytes(winners) * 200_000}


def test_a_writer_killed_in_the_middle_leaves_nothing_visible(store: Store, tmp_path: Path) -> None:
    store.create("quarantine/m/before", b"kept")
    pipe = tmp_path / "slow"
    os.mkfifo(pipe)

    def write_forever(i: int) -> None:
        if isinstance(store, DirectoryStore):
            again(store).copy_in_file("quarantine/m/model", pipe)
        else:
            half_an_upload(store.url("quarantine/m/model"))

    writer = FORK.Process(target=write_forever, args=(0,))
    writer.start()
    if isinstance(store, DirectoryStore):
        with pipe.open("wb") as feed:
            feed.write(b"x" * 3 * MIB)
            feed.flush()
            wait_until(lambda: any(f.stat().st_size >= MIB for f in (store.root / ".partial").iterdir()))
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
            with contextlib.suppress(BrokenPipeError):
                feed.close()
    else:
        time.sleep(0.5)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert not store.exists("quarantine/m/model")
    assert list(store.list("")) == ["quarantine/m/before"]
    assert store.create("quarantine/m/model", b"whole")
    assert store.read("quarantine/m/model") == b"whole"


def half_an_upload(url: str) -> None:
    """Send the head of a PUT and half of its body, then hang."""
    host, port = os.environ["TEST_S3_ENDPOINT"].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        path = "/" + url.removeprefix("s3://")
        head = f"PUT {path} HTTP/1.1\r\nHost: {host}:{port}\r\nIf-None-Match: *\r\nContent-Length: {2 * MIB}\r\n\r\n"
        connection.sendall(head.encode() + b"x" * MIB)
        signal.pause()


def wait_until(happened: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):
            if happened():
                return
        time.sleep(0.01)
    raise TimeoutError(f"not within {seconds} s")


def test_remains_of_killed_writers_are_swept_but_live_ones_are_not(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.create("a", b"")
    old, young = tmp_path / ".partial" / "old", tmp_path / ".partial" / "young"
    for file in (old, young):
        file.write_bytes(b"half")
    past = time.time() - ABANDONED_SECONDS - 1
    os.utime(old, (past, past))
    DirectoryStore(tmp_path).create("b", b"")
    assert not old.exists()
    assert young.exists()


def test_replace_needs_the_etag_that_was_read(store: Store) -> None:
    store.create("lease", b"one")
    stale = store.etag("lease")
    fresh = store.replace("lease", b"two", if_match=stale)
    assert fresh == store.etag("lease")
    with pytest.raises(Changed):
        store.replace("lease", b"three", if_match=stale)
    assert store.read("lease") == b"two"


def test_replace_makes_nothing_new(store: Store) -> None:
    store.create("other", b"one")
    with pytest.raises(Changed):
        store.replace("lease", b"two", if_match=store.etag("other"))
    assert not store.exists("lease")


def test_eight_processes_count_and_lose_nothing(store: Store) -> None:
    store.create("counter", b"0")

    def count(_: int) -> int:
        mine, conflicts, done = again(store), 0, 0
        while done < 3:
            data, etag = mine.read_tagged("counter")
            try:
                mine.replace("counter", b"%d" % (int(data) + 1), if_match=etag)
                done += 1
            except Changed:
                conflicts += 1
        return conflicts

    in_processes(8, count)
    assert store.read("counter") == b"24"


def test_list_gives_what_starts_with_the_prefix_in_order(store: Store) -> None:
    keys = ["evidence/m1/abs/1.json", "evidence/m1/abs/2.json", "evidence/m1/abs-x/1.json", "evidence/m10/a", "é b"]
    for key in reversed(keys):
        assert store.create(key, b"")
    assert list(store.list("")) == sorted(keys, key=str.encode)
    assert list(store.list("evidence/m1/")) == sorted(keys[:3], key=str.encode)
    assert list(store.list("evidence/m1")) == sorted(keys[:4], key=str.encode)
    assert list(store.list("evidence/m1/abs/")) == keys[:2]
    assert list(store.list("evidence/m1/abs/2")) == keys[1:2]
    assert list(store.list("evidence/none/")) == []
    assert list(store.list("evidence/m10/a")) == ["evidence/m10/a"]
    assert list(store.list("evidence/m10/a/")) == []


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "/etc/passwd", "../up", "a/../../b", "a/..", "./a", "a//b", "a/", ".partial/x", ".lock"),
        *("a\0b", "a\nb", "a\\b", "bad\udcff", "a" * 256, "/".join(["a" * 200] * 6)),
    ],
)
def test_a_wrong_key_is_refused(store: Store, key: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    for use in (
        lambda: store.create(key, b""),
        lambda: store.replace(key, b"", if_match="x"),
        lambda: store.read(key),
        lambda: store.etag(key),
        lambda: store.exists(key),
        lambda: store.copy_in_file(key, source),
        lambda: store.fetch(key, tmp_path / "out"),
        lambda: store.url(key),
    ):
        with pytest.raises(BadKey, match="expected a store key"):
            use()
    if key and not key.endswith("/"):
        with pytest.raises(BadKey):
            list(store.list(key + "/"))


def test_a_key_cannot_be_a_file_and_a_folder_in_a_directory(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.create("a/b", b"")
    for key in ("a", "a/b/c"):
        with pytest.raises(StoreError):
            store.create(key, b"")


def test_files_stream_in_and_out_whole(store: Store, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(5 * MIB + 7))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert store.copy_in_file("vetted/m/model.onnx", source, sha256=digest)
    assert not store.copy_in_file("vetted/m/model.onnx", source)
    out.write_bytes(b"older")
    assert store.fetch("vetted/m/model.onnx", out) == digest
    assert out.read_bytes() == source.read_bytes() == store.read("vetted/m/model.onnx")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "store") == ["in", "out"]


def test_a_file_that_is_not_what_was_announced_is_not_stored(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"swapped")
    with pytest.raises(StoreError, match="it changed"):
        store.copy_in_file("vetted/m/model", source, sha256="0" * 64)
    with pytest.raises(StoreError):
        store.copy_in_file("vetted/m/model", tmp_path / "absent")
    assert list(store.list("")) == []


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.create("kept", b"kept")

    def fill(_: int) -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        try:
            store.create("big", b"x" * 2 * MIB)
        except StoreError as error:
            return str(error)
        return "stored"

    assert "raise the limit on file size" in in_processes(1, fill)[0]
    assert list(store.list("")) == ["kept"]
    assert list((tmp_path / "store" / ".partial").iterdir()) == []
    assert store.create("big", b"fits")


@contextlib.contextmanager
def mounted(where: Path, *arguments: str) -> Iterator[None]:
    where.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(where)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this host lets us mount nothing: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_a_file_system_with_no_space_left_is_said_and_loses_nothing(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        store = open_store(str(tmp_path / "small"))
        assert store.create("kept", b"kept")
        source = tmp_path / "big"
        source.write_bytes(b"x" * 2 * MIB)
        for attempt in (
            lambda: store.create("big", b"x" * 2 * MIB),
            lambda: store.copy_in_file("big", source),
            lambda: store.replace("kept", b"x" * 2 * MIB, if_match=store.etag("kept")),
        ):
            with pytest.raises(StoreError, match="free some disk space"):
                attempt()
        assert list(store.list("")) == ["kept"]
        assert store.read("kept") == b"kept"
        assert store.create("small", b"fits")


def test_a_full_disk_on_the_reading_side_leaves_no_half_file(store: Store, tmp_path: Path) -> None:
    store.create("big", b"x" * 2 * MIB)
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        with pytest.raises(StoreError):
            store.fetch("big", tmp_path / "small" / "out")
        assert list((tmp_path / "small").iterdir()) == []


def test_a_store_mounted_read_only_is_said_and_can_be_read(tmp_path: Path) -> None:
    where = tmp_path / "frozen"
    with mounted(where, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        store = open_store(str(where))
        store.create("kept", b"kept")
        subprocess.run(["mount", "-o", "remount,ro", str(where)], check=True)
        for attempt in (
            lambda: store.create("new", b""),
            lambda: store.copy_in_file("new", Path(__file__)),
            lambda: store.replace("kept", b"", if_match=store.etag("kept")),
        ):
            with pytest.raises(StoreError, match="mount it writable"):
                attempt()
        assert store.read("kept") == b"kept"
        assert list(store.list("")) == ["kept"]
        assert not store.create("kept", b"other")


def test_an_unreachable_endpoint_is_said_within_ten_seconds(s3_endpoint: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        store = open_store("s3://vetgate", endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}")
        start = time.monotonic()
        for use in (lambda: store.create("a", b""), lambda: store.read("a"), lambda: list(store.list(""))):
            with pytest.raises(StoreError, match="correct VETGATE_S3_ENDPOINT, or allow more time by VETGATE_REMOTE"):
                use()
        assert time.monotonic() - start < 10


def test_a_missing_bucket_is_not_a_missing_object(s3_endpoint: str) -> None:
    store = open_store("s3://no-such-bucket/x", endpoint=s3_endpoint)
    for use in (
        lambda: store.create("a", b""),
        lambda: store.read("a"),
        lambda: store.exists("a"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StoreError, match="make the bucket"):
            use()


OVERWRITES = b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'


def test_an_endpoint_that_ignores_the_condition_is_refused(s3_endpoint: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(OVERWRITES)

        threading.Thread(target=answer, daemon=True).start()
        store = open_store("s3://vetgate", endpoint=f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(StoreError, match="honours If-None-Match"):
            store.create("a", b"")


def test_a_creator_whose_answer_was_lost_still_knows_that_it_won(s3_endpoint: str) -> None:
    target = ("127.0.0.1", int(s3_endpoint.rsplit(":", 1)[1]))
    lost = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def forward() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    with connection, socket.create_connection(target) as upstream:
                        request = receive(connection)
                        upstream.sendall(request)
                        answer = b"".join(iter(lambda: upstream.recv(1 << 16), b""))
                        if request.startswith(b"PUT") and b"/precious" in request.split(b"\r\n")[0] and not lost:
                            lost.append(answer)
                            continue
                        connection.sendall(answer)

        threading.Thread(target=forward, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert open_store("s3://vetgate/lost", endpoint=endpoint).create("precious", b"mine")
        assert lost
        assert not open_store("s3://vetgate/lost", endpoint=endpoint).create("precious", b"mine")


def receive(connection: socket.socket) -> bytes:
    """One HTTP request with a Content-Length, its connection made to close after the answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
    length = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")), 0)
    if b"expect: 100-continue" in head.lower():
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while len(body) < length:
        body += connection.recv(1 << 16)
    return b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body


def test_urls_and_settings_open_the_same_store(tmp_path: Path, s3_endpoint: str) -> None:
    spaced = Settings(home=tmp_path / "a b")
    open_store(spaced).create("k", b"v")
    assert open_store((tmp_path / "a b" / "store").as_uri()).read("k") == b"v"
    assert open_store(spaced).url("k") == (tmp_path / "a b" / "store" / "k").as_uri()
    there = Settings(home=tmp_path, store="s3://vetgate/deep/er/", s3_endpoint=s3_endpoint)
    open_store(there).create("k", b"v")
    assert open_store(there).url("k") == "s3://vetgate/deep/er/k"
    assert open_store("s3://vetgate", endpoint=s3_endpoint).read("deep/er/k") == b"v"
    for wrong in ("https://vetgate/x", "s3://", "file://host/x"):
        with pytest.raises(StoreError, match="expected"):
            open_store(wrong)


def test_what_is_too_large_to_be_read_at_once_is_none_of_ours(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("a/small", b"x" * 10)
    store.create("a/large", b"x" * 11)
    monkeypatch.setattr(base, "LARGEST_READ", 10)
    assert store.read("a/small") == store.read_tagged("a/small")[0] == b"x" * 10
    for read in (store.read, store.read_tagged):
        with pytest.raises(Denied, match="expected an object of at most 10 bytes under a/large, got 11"):
            read("a/large")


def test_a_file_that_holds_nothing_but_its_size_fills_no_memory(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with (tmp_path / "hollow").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(Denied, match="got 4398046511104; it is none of ours"):
        store.read("hollow")
