"""What is handed in and what is handed out, beside a stranger who can write to the store."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from flows.vetting.submit import local_report, submit
from tasks.records.ledger_state import ledger_state
from tasks.records.submitters import submitters_of
from tasks.report.page import TEMPLATE
from tests.production import NOW, Home, home_in, submission_at
from vetgate.errors import Altered, BadSubmission, VetgateError
from vetgate.trust.keys import SUBMITTER, key_id, load_or_create_key, new_key, raw_public, trust_key

SOURCE = TEMPLATE.read_text()
OPENING = "<!doctype" + SOURCE.partition("<!doctype")[2].partition("<title>")[0]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_in(tmp_path)


def vetted(home: Home, manifest: str, verdict: str, page: str | None = None) -> str:
    """A verdict with its report in the store, as another host leaves them; the report's key."""
    before = set(home.store.list(f"attestations/{manifest}/"))
    home.decide(manifest, verdict, issued=NOW)
    (made,) = set(home.store.list(f"attestations/{manifest}/")) - before
    key = made.replace("attestations/", "reports/").replace(".json", ".html")
    home.store.create(key, (OPENING + verdict if page is None else page).encode())
    return key


@pytest.mark.parametrize("laid", ["submitters/{}.json", "submitters/{}/" + "0" * 64 + ".json", "submitters/{}/x"])
def test_what_a_submitter_signs_is_kept_beside_whatever_was_laid_there(laid: str, home: Home, tmp_path: Path) -> None:
    load_or_create_key(home.settings.gate_key, home.settings.trust_root, now=NOW)
    key = new_key(tmp_path / "sam")
    trust_key(home.settings.trust_root, raw_public(key), SUBMITTER, now=NOW, valid=timedelta(days=1))
    directory = submission_at(tmp_path / "given", b"model")
    manifest = submit(home.settings, directory).id
    home.store.create(laid.format(manifest), b"{}")
    assert submitters_of(ledger_state(home.settings), manifest) == frozenset()
    assert submit(home.settings, directory, tmp_path / "sam").id == manifest
    assert submitters_of(ledger_state(home.settings), manifest) == {key_id(key)}


@pytest.mark.parametrize(
    "name",
    ["zzz.html", "99991231T235959Z-" + "f" * 64 + ".html", "99991231T235959Z.html", "a/b.html", "~.html"],
)
def test_a_report_that_no_entry_of_the_ledger_tells_of_is_not_handed_out(name: str, home: Home) -> None:
    manifest = home.submit(b"model")
    home.store.create(f"reports/{manifest}/{name}", f"{OPENING}laid by a stranger".encode())
    with pytest.raises(BadSubmission, match="which has no report"):
        local_report(home.settings, manifest)

    key = vetted(home, manifest, "FAIL")
    found = local_report(home.settings, manifest)
    assert found.path.read_text().endswith("FAIL")
    assert found.warnings == (
        f"{key} comes from the store and is not signed; what counts is the ledger's newest verdict, FAIL",
    )


@pytest.mark.parametrize("ending", ["", ".htm", ".html.html", ".html/x.html"])
def test_a_name_like_that_of_a_report_is_none(ending: str, home: Home) -> None:
    manifest = home.submit(b"model")
    home.decide(manifest)
    (made,) = home.store.list(f"attestations/{manifest}/")
    laid = made.replace("attestations/", "reports/").removesuffix(".json") + ending
    home.store.create(laid, OPENING.encode())
    with pytest.raises(BadSubmission, match="which has no report"):
        local_report(home.settings, manifest)


@pytest.mark.parametrize(("first", "then"), [("PASS", "FAIL"), ("FAIL", "PASS"), ("INCONCLUSIVE", "PASS")])
def test_it_is_that_of_the_newest_verdict_in_the_ledger(first: str, then: str, home: Home) -> None:
    manifest = home.submit(b"model")
    for verdict in (first, then):
        vetted(home, manifest, verdict)
        assert local_report(home.settings, manifest).path.read_text().endswith(verdict)


@pytest.mark.parametrize("page", ["<h1>PASS</h1>", "", OPENING + "<script>x</script>", OPENING + "<a href=x>y</a>"])
def test_a_page_that_vetgate_does_not_write_is_refused_and_leaves_nothing(page: str, home: Home) -> None:
    manifest = home.submit(b"model")
    key = vetted(home, manifest, "PASS", page)
    with pytest.raises(Altered, match=rf"expected a report in {key}, got another page"):
        local_report(home.settings, manifest)
    assert not list((home.settings.home / "reports").iterdir())


def made_here(home: Home, manifest: str) -> Path:
    """A page with the attestation beside it, as `publish` leaves them, of the newest verdict in the store."""
    page = home.settings.home / "reports" / f"{manifest}.html"
    attestation = home.settings.home / "attestations" / f"{manifest}.json"
    for path in (page, attestation):
        path.parent.mkdir(exist_ok=True)
    page.write_text("made here")
    attestation.write_bytes(home.store.read(max(home.store.list(f"attestations/{manifest}/"))))
    return page


def test_one_that_was_made_here_is_not_the_store_s(home: Home) -> None:
    manifest = home.submit(b"model")
    key = vetted(home, manifest, "PASS")
    local_report(home.settings, manifest)
    assert not (home.settings.home / "reports" / f"{manifest}.html").exists(), "a store's page takes no place of ours"
    made = made_here(home, manifest)
    Path(home.settings.store, key).unlink()
    found = local_report(home.settings, manifest)
    assert (found.path, found.warnings) == (made, ())


@pytest.mark.parametrize("then", ["FAIL", "INCONCLUSIVE", "PASS"])
@pytest.mark.parametrize("lost", [False, True])
def test_one_of_an_earlier_verdict_says_which_is_the_newest(then: str, lost: bool, home: Home) -> None:
    manifest = home.submit(b"model")
    home.decide(manifest, "PASS", issued=NOW)
    made = made_here(home, manifest)
    assert local_report(home.settings, manifest).warnings == ()
    if lost:
        (home.settings.home / "attestations" / f"{manifest}.json").unlink()
    home.decide(manifest, then, issued=NOW + timedelta(seconds=1))
    found = local_report(home.settings, manifest)
    assert found.path == made
    assert found.warnings == (f"{made} is of an earlier vetting; the newest verdict is {then}, vet it again",)


def test_nothing_is_handed_out_beside_a_ledger_that_is_broken(home: Home) -> None:
    manifest = home.submit(b"model")
    vetted(home, manifest, "FAIL")
    for entry in list(home.store.list("ledger/")):
        Path(home.settings.store, entry).unlink()
    with pytest.raises(VetgateError):
        local_report(home.settings, manifest)
