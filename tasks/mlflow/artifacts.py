"""The bytes of a run, from the run's own place and no other, and no more of them than were promised.

MLflow itself adds to a run's artifacts what a LoggedModel of its name holds, wherever that lies; it follows links, and
copies whatever it is sent.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from tasks.mlflow.answers import MOST_BYTES, OddAnswer, json_object, objects, text
from tasks.mlflow.client import WAIT_SECONDS, is_ours
from tasks.settings import Settings, location
from tasks.store.base import CHUNK, check_names, fetch_files, files_among
from tasks.store.open import open_store
from tasks.vetting.intake import MAX_BYTES, MAX_FILES
from vetgate.errors import Altered, BadSubmission, Denied, NotUnderstood, StoreError
from vetgate.formats.manifest import check_file_names, take_in

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SERVED = "/api/2.0/mlflow-artifacts/artifacts"
# of one folder: the registry is held meanwhile, and others must not give up
MOST_SECONDS = WAIT_SECONDS * 2 / 3


def place_of(client: MlflowClient, run_id: str) -> str:
    """Where a run itself keeps its artifacts, whatever else MLflow would add to them; not yet held against ours."""
    return text(client.get_run(run_id).info.artifact_uri).rstrip("/")


def fetch_place(
    settings: Settings, place: str, destination: Path, names: Collection[str] | None = None, *, most: int = MAX_BYTES
) -> Path:
    """The new directory `destination` with the plain files of a folder of artifacts, of together at most `most` bytes.

    Where `names` are given these must be its files, and anything else is Altered, or StoreError if there is none at
    all; otherwise it is NotUnderstood. Raises StoreError for a place that is not ours or cannot be read. To be called
    while the registry is held, which says what is wrong with a server's answer.
    """
    if not is_ours(settings, place):
        raise StoreError(
            f"expected artifacts of this installation, got {place!r:.300}; set VETGATE_ARTIFACTS if they are"
        )
    read = {"s3": _from_s3, "mlflow-artifacts": _from_server}.get(urlsplit(place).scheme, _from_disk)
    try:
        return read(settings, place, destination, names, most)
    except NotUnderstood as error:
        if names is None:
            raise
        raise Altered(f"expected the plain files that were promoted: {error}") from error


def _from_disk(settings: Settings, place: str, destination: Path, names: Collection[str] | None, most: int) -> Path:
    try:
        check = None if names is None else lambda found: check_names(found, place, names)
        within = Path(settings.artifacts)
        take_in(Path(location(place)), destination, within=within, check=check, max_bytes=most, max_files=MAX_FILES)
    except BadSubmission:
        _check((), place, names)
    return destination


def _from_s3(settings: Settings, place: str, destination: Path, names: Collection[str] | None, most: int) -> Path:
    above, _, folder = place.rstrip("/").rpartition("/")
    store = open_store(above, endpoint=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or settings.s3_endpoint)
    strange: list[str] = []
    keys = list(islice(store.list(f"{folder}/", strange.append), MAX_FILES + 1))
    found = {key.removeprefix(f"{folder}/") for key in [*keys, *files_among(strange)]}
    _check(found, place, names)
    try:
        return fetch_files(store, folder, destination, sorted(found), most=most)
    except Denied as error:
        raise NotUnderstood(f"expected at most {most} bytes in {place}, got more: {error}") from error


def _from_server(settings: Settings, place: str, destination: Path, names: Collection[str] | None, most: int) -> Path:
    root, ends = re.sub("^mlflow-artifacts:(//[^/]*)?/*", "", place), time.monotonic() + MOST_SECONDS
    told = b"".join(_answer(settings, "", MOST_BYTES, ends, params={"path": root}))
    sizes = {
        f"{text(item.get('path'))}{'/' if item.get('is_dir') else ''}": _size(item.get("file_size"))
        for item in objects(json_object(told, "a list of artifacts").get("files"), "artifacts")
    }
    _check(sizes, place, names)
    if (size := sum(sizes.values())) > most:
        raise NotUnderstood(f"expected at most {most} bytes, got {size} bytes at {place}; remove what is too large")
    destination.mkdir(parents=True, mode=0o700)
    for name, promised in sizes.items():
        with open(destination / name, "xb") as file:
            for part in _answer(settings, f"/{quote(f'{root}/{name}')}", promised, ends):
                file.write(part)
    return destination


def _check(found: Collection[str], place: str, names: Collection[str] | None) -> None:
    """Raise what `fetch_place` raises for a folder of files of these names."""
    if names is not None:
        check_names(found, place, names)
    if not found:
        raise NotUnderstood(f"expected 1 to {MAX_FILES} files in {place}, got none")
    check_file_names(found, MAX_FILES)


def _size(told: object) -> int:
    try:
        return max(0, int(str(told or 0)))
    except ValueError as error:
        raise OddAnswer(f"{told!r:.80} instead of a size") from error


def _answer(settings: Settings, path: str, most: int, ends: float, **asked: Any) -> Iterator[bytes]:
    """What a server answers, as it arrives; raises OddAnswer for more than `most` bytes, or where it takes too long."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request
    from urllib3.exceptions import HTTPError

    # packed, a few bytes could unfold to any number; a redirection could lead to whatever this host can reach
    given = {"stream": True, "allow_redirects": False, "extra_headers": {"Accept-Encoding": "identity"}}
    access: Any = get_default_host_creds
    ask: Any = http_request
    host, read = access(settings.tracking_uri.rstrip("/")), 0
    try:
        with closing(ask(host, f"{SERVED}{path}", "GET", **given, **asked)) as answer:
            packed = answer.headers.get("Content-Encoding", "identity")
            if answer.status_code != 200 or packed != "identity":
                raise OddAnswer(f"{answer.status_code}, encoded as {packed!r:.40}, to {SERVED}{path}")
            while part := answer.raw.read1(CHUNK, decode_content=False):
                read += len(part)
                if read > most or time.monotonic() > ends:
                    raise OddAnswer(f"more than {most} bytes, or {MOST_SECONDS:g} seconds, for {SERVED}{path}")
                yield part
    except HTTPError as error:
        raise OddAnswer(f"{error} in {SERVED}{path}") from error
