"""`vetgate status` at a glance: what waits, what serves until when, what runs out soon, and what cannot be known."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.cli.show_status import show_status
from flows.cli.status import at_a_glance
from flows.cli.terminal import PlainConsole
from flows.cli.verify import app
from flows.production.promote import promote
from tasks.mlflow.aliases import rehash
from tasks.mlflow.client import registry
from tasks.mlflow.heads import published_head
from tasks.records.ledger_state import ledger_state
from tasks.records.promotions import Promotion, promotion_of
from tasks.records.rescans import record_key, save_rescan
from tasks.records.submitters import save_submitter, sign_submission
from tasks.records.waivers import save_approval, save_waiver
from tasks.store.lease import leased, read_lease
from tests.flows.production.test_serving import NOW, Production, overwrite, production, weights
from vetgate.digest import canonical_json
from vetgate.errors import Denied, StoreError
from vetgate.formats.plain_text import escaped, steering
from vetgate.trust import dsse
from vetgate.trust.keys import APPROVER, SUBMITTER, PublicKey, TrustRoot, key_id, raw_public, read_trust_root, utc_now
from vetgate.trust.waivers import sign_approval, sign_waiver

__all__ = ["production"]


def only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    (row,) = rows
    return row


def shown(seen: dict[str, Any]) -> str:
    """The tables as a person sees them."""
    console = PlainConsole(width=220, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    show_status(console, seen)
    return console.export_text()


def test_an_empty_installation_has_nothing_to_say_and_asks_no_registry(production: Production) -> None:
    (production.settings.home / "mlflow.db").unlink()
    seen = at_a_glance(production.settings)
    assert seen == {
        "submissions": [],
        "queue": {"waiting": 0, "at work": 0},
        "verdicts": {},
        "production": [],
        "waivers": [],
        "rescan": None,
        "strange": [],
        "unknown": [],
        "errors": {},
    }
    assert not (production.settings.home / "mlflow.db").exists()


def test_what_waits_is_distinguished_from_what_a_worker_vets(production: Production) -> None:
    manifest = production.submit(1)
    row = only(at_a_glance(production.settings)["submissions"])
    assert (row["manifest_sha256"], row["verdict"], row["state"]) == (manifest, None, "waiting")
    assert row["attempts"] == 0 and row["held_by"] is None

    with pytest.raises(ZeroDivisionError), leased(production.settings, manifest):
        1 / 0  # noqa: B018
    with pytest.raises(ZeroDivisionError), leased(production.settings, manifest):
        lease = read_lease(production.store, manifest, production.settings.lease_seconds, time.time())
        assert lease is not None
        seen = at_a_glance(production.settings)
        row = only(seen["submissions"])
        assert (row["state"], row["attempts"]) == ("at work", 2)
        assert row["held_by"]["pid"] == lease.pid and row["held_by"]["host"] == lease.host.split("/")[0]
        assert seen["queue"] == {"waiting": 0, "at work": 1}
        assert f"attempt 2 by {row['held_by']['host']}, process {lease.pid}" in shown(seen)
        1 / 0  # noqa: B018
    seen = at_a_glance(production.settings)
    assert "queued, 2 attempts died" in shown(seen)
    assert seen["queue"] == {"waiting": 1, "at work": 0}


def test_a_record_that_is_not_of_its_bytes_is_told_of_and_hides_no_other(production: Production) -> None:
    manifest = production.submit(1)
    record = production.store.read(f"submissions/{manifest}.json")
    for other, content in {"0" * 64: record, "1" * 64: b"{}", "2" * 64: b"\xff"}.items():
        production.store.create(f"submissions/{other}.json", content)
    seen = at_a_glance(production.settings)
    assert only(seen["submissions"])["manifest_sha256"] == manifest
    told = seen["errors"]["submissions"]
    assert [told.count(f"expected submissions/{digit * 64}.json to follow") for digit in "012"] == [1, 1, 1]
    assert "remove it and submit the model again" in shown(seen)


def test_verdicts_are_counted(production: Production) -> None:
    for seed, verdict in enumerate(("PASS", "FAIL", "FAIL")):
        manifest = production.submit(seed)
        production.decide(manifest, verdict)
        production.store.create(f"results/{manifest}/x.json", b"{}")
    seen = at_a_glance(production.settings)
    assert seen["verdicts"] == {"PASS": 1, "FAIL": 2}
    assert {row["state"] for row in seen["submissions"]} == {"decided"}


def test_what_is_in_production_is_shown_with_what_covers_it_until_when(production: Production) -> None:
    manifest = production.promoted(1)
    row = only(at_a_glance(production.settings)["production"])
    assert row == {
        "name": "digits",
        "model": "prod.digits",
        "alias": "champion",
        "stage": None,
        "version": "1",
        "covered": True,
        "manifest_sha256": manifest,
        "verdict": "PASS",
        "until": f"{NOW + timedelta(days=29):%Y-%m-%dT%H:%M:%SZ}",
        "soon": False,
        "grace": False,
        "why": None,
    }
    later = at_a_glance(production.settings, now=NOW + timedelta(days=23))
    assert only(later["production"])["soon"]
    # nothing was signed for a month: that the verdict expired, only this clock says
    seen = at_a_glance(production.settings, now=NOW + timedelta(days=30))
    doubted = only(seen["production"])
    assert doubted["covered"] is None and "clock" in doubted["why"] and seen["unknown"] == ["production"]
    production.decide(manifest, issued=NOW, valid=timedelta(days=3))
    expired = only(at_a_glance(production.settings, now=NOW + timedelta(days=4))["production"])
    assert expired["covered"] is False and "expired" in expired["why"]


@pytest.mark.parametrize("behind", [timedelta(minutes=10), timedelta(hours=2), timedelta(days=400)])
def test_a_clock_behind_the_ledger_shows_nothing_as_covered(production: Production, behind: timedelta) -> None:
    production.promoted(1)
    seen = at_a_glance(production.settings, now=utc_now() - behind)
    assert (
        seen["production"] is None and "expected a clock after the ledger's last entry" in seen["errors"]["production"]
    )


def test_every_alias_has_its_row_and_a_bypass_stands_out(production: Production) -> None:
    production.promoted(1, issued=NOW - timedelta(days=2))
    second = production.submit(2)
    production.decide(second)
    promote(production.settings, "digits", second)
    promote(production.settings, "digits", second, alias="challenger")
    with registry(production.settings) as client:
        made = client.create_model_version("prod.digits", "s3://anywhere/else")
        client.set_registered_model_alias("prod.digits", "shadow", made.version)

    rows = {row["alias"]: row for row in at_a_glance(production.settings)["production"]}

    covered = {alias: (row["version"], row["covered"]) for alias, row in rows.items()}
    assert covered == {
        "champion": ("2", True),
        "challenger": ("2", True),
        "previous": ("1", True),
        "shadow": ("3", False),
    }
    assert "never promoted" in rows["shadow"]["why"]
    assert "NOT COVERED" in shown(at_a_glance(production.settings))


def test_what_a_rescan_found_altered_is_not_covered_until_it_is_restored(production: Production) -> None:
    registered, _ = production.copies(production.promoted(1))
    overwrite(registered, weights(2))
    with pytest.raises(Denied):
        rehash(production.settings, production.store, deliverable(production))
    assert only(at_a_glance(production.settings)["production"])["covered"] is False
    overwrite(registered, weights(1))
    assert only(at_a_glance(production.settings)["production"])["covered"] is True


def deliverable(production: Production) -> Promotion:
    found = promotion_of(production.store, read_trust_root(production.settings.trust_root), "digits", "1")
    assert found is not None
    return found


def test_a_rescan_s_grace_is_marked(production: Production) -> None:
    manifest = production.promoted(1)
    demote_after = NOW + timedelta(hours=4)
    production.decide(manifest, "FAIL", issued=NOW, purpose="rescan", demote_after=demote_after)
    seen = at_a_glance(production.settings)
    row = only(seen["production"])
    assert row["grace"] and row["soon"] and row["verdict"] == "FAIL"
    assert "(grace)" in shown(seen)


def test_with_the_registry_away_the_rest_is_shown(production: Production, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    manifest = production.promoted(1)
    away = production.settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    seen = at_a_glance(away)
    assert seen["production"] is None and "http://127.0.0.1:9" in seen["errors"]["production"]
    assert only(seen["submissions"])["manifest_sha256"] == manifest
    assert "production: not known" in shown(seen)


def test_without_its_store_nothing_of_it_is_known(production: Production, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    away = {"store": "s3://vetgate", "s3_endpoint": "http://127.0.0.1:9"}
    seen = at_a_glance(production.settings.model_copy(update={**away, "remote_seconds": 1}))
    parts = ("submissions", "waivers", "rescan", "strange")
    assert seen["unknown"] == list(seen["errors"]) == list(parts)
    assert [seen[part] for part in (*parts, "queue", "verdicts")] == [None] * 6 and "not known" in shown(seen)


class TestWaivers:
    """A submission that failed, its submitter, two approvers, and a waiver of its finding."""

    FINDING = "backdoor:label-3"

    @pytest.fixture
    def keys(self, production: Production) -> dict[str, Ed25519PrivateKey]:
        """Keys of a submitter and two approvers, all of them trusted; beside them the gate's."""
        manifest = production.submit(1)
        production.decide(manifest, "FAIL")
        roles = {"submitter": SUBMITTER, "one": APPROVER, "two": APPROVER}
        keys = {who: Ed25519PrivateKey.generate() for who in roles}
        window = (NOW - timedelta(days=90), NOW + timedelta(days=900))
        public = tuple(PublicKey(raw_public(keys[who]), role, *window) for who, role in roles.items())
        trusted = read_trust_root(production.settings.trust_root).keys + public
        overwrite(production.settings.trust_root, canonical_json(TrustRoot(trusted).to_json()))
        save_submitter(production.store, manifest, sign_submission(manifest, "digits", keys["submitter"]))
        return keys

    @pytest.fixture
    def waive(self, production: Production, keys: dict[str, Ed25519PrivateKey]) -> Callable[..., str]:
        """Ask for a waiver and have it approved: (*approvers, days=...) -> its digest."""

        def ask(*approvers: str, days: int) -> str:
            manifest = only(at_a_glance(production.settings)["submissions"])["manifest_sha256"]
            wish = sign_waiver(
                keys["one"],
                ledger=ledger_state(production.settings).id,
                manifest=manifest,
                finding=self.FINDING,
                reason="seen in the clean data too",
                now=NOW,
                valid=timedelta(days=days),
            )
            save_waiver(production.store, manifest, wish)
            for who in approvers:
                approval = sign_approval(keys[who], of=dsse.digest(wish), now=NOW)
                save_approval(production.store, dsse.digest(wish), key_id(keys[who]), approval)
            return dsse.digest(wish)

        return ask

    def test_one_that_is_in_force_is_shown_with_its_expiry(
        self, production: Production, waive: Callable[..., str]
    ) -> None:
        digest = waive("one", "two", days=20)
        row = only(at_a_glance(production.settings)["waivers"])
        assert (row["waiver"], row["finding"], row["approvals"]) == (digest, self.FINDING, 2)
        assert row["in_force"] and not row["soon"] and row["why"] is None
        assert row["expires"] == f"{NOW + timedelta(days=20):%Y-%m-%dT%H:%M:%SZ}"

    def test_one_that_runs_out_soon_is_marked_and_stands_first(
        self, production: Production, waive: Callable[..., str]
    ) -> None:
        waive("one", "two", days=20)
        first = waive("one", "two", days=3)
        seen = at_a_glance(production.settings)
        assert [row["soon"] for row in seen["waivers"]] == [True, False]
        assert seen["waivers"][0]["waiver"] == first and " soon" in shown(seen)

    def test_one_without_enough_approvals_of_others_is_not_in_force(
        self, production: Production, waive: Callable[..., str]
    ) -> None:
        waive("one", "submitter", days=20)
        row = only(at_a_glance(production.settings)["waivers"])
        assert not row["in_force"] and row["why"] == "has 1 of 2 approvals"

    def test_one_that_expired_is_revoked_or_asks_for_too_much_says_so(
        self, production: Production, waive: Callable[..., str]
    ) -> None:
        digest = waive("one", "two", days=20)
        after = only(at_a_glance(production.settings, now=NOW + timedelta(days=21))["waivers"])
        assert not after["in_force"] and "expired" in after["why"] and not after["soon"]
        production.store.create(f"revocations/{digest}.json", b"{}")
        assert "revoked" in only(at_a_glance(production.settings)["waivers"])["why"]

    def test_without_the_public_keys_they_are_not_known(
        self, production: Production, waive: Callable[..., str]
    ) -> None:
        waive("one", "two", days=20)
        production.settings.trust_root.unlink()
        seen = at_a_glance(production.settings)
        assert seen["waivers"] is None and "expected a trust root" in seen["errors"]["waivers"]


@pytest.mark.parametrize("hostile", ["A\x1b[2J\x1b]0;title\x07B", "B\u202eTSENOH\u202c", "a\x00\x9b1m", "[red]a[/red]"])
def test_whatever_a_supplier_is_called_steers_no_terminal(production: Production, hostile: str) -> None:
    production.submit(1)
    seen = at_a_glance(production.settings)
    # no record that proves itself says so: intake refuses it
    only(seen["submissions"])["supplier"] = hostile
    text = shown(seen)
    assert escaped(hostile) in text and all(steering(line) is None for line in text.split("\n"))
    assert len({len(line) for line in text.split("\n") if line.startswith(("│", "┃", "└"))}) == 1


def test_the_last_rescan_is_shown(production: Production) -> None:
    for number, verdict in ((2, "DONE"), (9, "DONE"), (10, "INCONCLUSIVE")):
        blob = {
            "batch": f"2026-01-01-{number}",
            "verdict": verdict,
            "checked": 5,
            "unchanged": 3,
            "stale": 1,
            "uncovered": 1,
            "taken_back": [{"name": "digits"}],
            "errors": [],
        }
        save_rescan(production.settings, production.store, blob)
    seen = at_a_glance(production.settings)
    assert seen["rescan"] is not None and seen["rescan"]["batch"] == "2026-01-01-10"
    line = "last rescan 2026-01-01-10: INCONCLUSIVE, 5 checked, 3 unchanged, 1 stale, 1 uncovered, 1 taken back"
    assert line in shown(seen)


@pytest.mark.parametrize("laid", ["no JSON", "unsigned", "of another batch"])
def test_a_rescan_that_no_gate_signed_is_not_the_last_one_and_is_told_of(production: Production, laid: str) -> None:
    blob = {"batch": "2026-01-01-1", "verdict": "DONE"}
    assert save_rescan(production.settings, production.store, blob)
    genuine = production.store.read(record_key("2026-01-01-1"))
    unsigned = canonical_json(blob | {"batch": "2026-01-02-1"})
    content = {"no JSON": b"{", "unsigned": unsigned, "of another batch": genuine}[laid]
    production.store.create(record_key("2026-01-02-1"), content)
    production.store.create("rescans/9999-x.json", content)
    seen = at_a_glance(production.settings)
    assert seen["rescan"] == blob and "rescans/2026-01-02-1.json" in seen["errors"]["rescan"]
    assert not save_rescan(production.settings, production.store, blob | {"batch": "2026-01-02-1"})


def test_the_command_prints_one_object(
    production: Production, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VETGATE_HOME", str(production.settings.home))
    production.promoted(1)
    assert app(["status", "--json"], standalone_mode=False) == 0
    blob = json.loads(capfd.readouterr().out)
    assert only(blob["production"])["covered"] and only(blob["submissions"])["verdict"] == "PASS"
    assert app(["status"], standalone_mode=False) == 0
    assert "prod.digits" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("production", {"VETGATE_TRACKING_URI": "http://127.0.0.1:9"}),
        ("production", {"VETGATE_TRACKING_URI": "https://x", "MLFLOW_TRACKING_SERVER_CERT_PATH": "/none/cert.pem"}),
        ("production", {"VETGATE_TRACKING_URI": "https://x", "MLFLOW_TRACKING_SERVER_CERT_PATH": __file__}),
        ("production", {"VETGATE_TRACKING_URI": "https://x", "MLFLOW_TRACKING_CLIENT_CERT_PATH": "/none/cert.pem"}),
        ("production", {"VETGATE_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_TIMEOUT": "soon"}),
        ("submissions", {"VETGATE_TRUST_ROOT": "/none/trust.json"}),
        ("waivers", {"VETGATE_POLICY": "/none/policy.yaml"}),
    ],
)
def test_what_cannot_be_known_is_null_named_and_ends_with_2(
    production: Production,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    part: str,
    setting: dict[str, str],
) -> None:
    production.promoted(1)
    production.store.create(f"waivers/{'0' * 64}/{'0' * 64}.json", b"{}")
    for name, value in {"VETGATE_HOME": str(production.settings.home), **setting}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert app(["status", "--json"], standalone_mode=False) == 2
    blob = json.loads(capfd.readouterr().out)
    assert blob[part] is None and part in blob["unknown"] and blob["errors"][part].startswith("expected ")
    assert all(value in blob["errors"][part] for name, value in setting.items() if name.startswith("MLFLOW_"))
    assert app(["status"], standalone_mode=False) == 2
    assert f"{part}: not known, expected" in capfd.readouterr().out


def test_what_was_passed_over_leaves_nothing_unknown(production: Production) -> None:
    production.promoted(1)
    production.store.create("rescans/2026-01-02-1.json", b"{}")
    seen = at_a_glance(production.settings)
    assert seen["unknown"] == [] and list(seen["errors"]) == ["rescan"] and "not known" not in shown(seen)


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH"])
def test_a_certificate_that_is_not_there_is_an_error_of_ours_for_heads_too(
    production: Production, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "/none/cert.pem")
    with pytest.raises(StoreError, match=f"{variable}=/none/cert.pem"):
        published_head(production.settings.model_copy(update={"tracking_uri": "https://x"}))
