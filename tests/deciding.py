"""A home in which the real gate judges evidence that a test wrote, held against the shipped reference models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.gate import keys
from tasks.records.submitters import save_submitter, sign_submission
from tasks.settings import Settings
from tasks.vetting import intake, signed_results
from tasks.vetting.conversion import keep_conversion
from tests.production import Home
from tests.vetgate.verdict.test_judge import label_norms
from vetgate.digest import code_digest
from vetgate.trust.keys import load_key
from vetgate.trust.statements import EVIDENCE
from vetgate.verdict.calibration import SHIPPED, load_calibration
from vetgate.verdict.judge import Decision, judge
from vetgate.verdict.policy import Policy

METHOD, TARGET = "neural_cleanse", 7


def _odd() -> float:
    """How far a trigger stands out that is rare among the shipped references at 5 %, and not at 0.5 %."""
    shipped = load_calibration()
    assert shipped is not None
    pin, policy = shipped.bank.methods[METHOD], Policy(name="court", required=(METHOD,))
    for effect in np.arange(0.5, 2.0, 0.02).tolist():
        found = replace(label_norms(backdoor=TARGET, effect=effect), params=dict(pin.params))
        asked = {"classes": 10, "data_sha256": None, "with_training_data": False, "sandbox_level": 1, "format": "onnx"}
        asked["input_shape"] = (1, 8, 8)
        ruled = judge([found], policy, replace(shipped, stale=()), **asked)
        if ruled.decision is Decision.FAIL and 0.007 < (ruled.p_value or 0) < 0.045:
            return float(effect)
    raise AssertionError("expected an effect between both rates; look at the shipped calibration")


# how far the target's trigger stands out: not at all, rare at 5 % but not at 0.5 %, beyond doubt
CLEAN, ODD, BACKDOORED = None, _odd(), 2.0


class Court(Home):
    """An installation with people who have keys, whose gate decides from evidence."""

    def __init__(self, home: Path, room: Path, **policy: Any) -> None:
        home.mkdir(exist_ok=True)
        rules, calibration = home / "policy.yaml", home / "calibration.json"
        rules.write_text(yaml.safe_dump({"name": "court", "required": [METHOD], **policy}))
        bank = json.loads(SHIPPED.read_text())
        # what the code of the method is today does not matter to what is tested with it
        bank["methods"][METHOD]["code"] = code_digest("detect", METHOD)
        calibration.write_text(json.dumps(bank))
        super().__init__(Settings(home=home, policy=rules, calibration=calibration), room)

    def person(self, name: str, role: str = "approver", days: int = 90) -> Path:
        """The private key of a person whom this installation trusts in a role."""
        path = self.room / f"{name}.key"
        keys.new(self.settings, path, role, days)
        return path

    def signed(self, weights: bytes, by: Path) -> str:
        """A submission that its supplier signed; its manifest."""
        manifest = self.submit(weights)
        self.sign(manifest, load_key(by))
        return manifest

    def sign(self, manifest: str, key: Ed25519PrivateKey) -> None:
        """Sign a submission as its submitter."""
        save_submitter(self.store, manifest, sign_submission(manifest, "digits", key))

    def submit(self, weights: bytes, name: str = "digits") -> str:
        """Take in what a vetter signs to be what vetgate writes itself; the SHA-256 of its manifest."""
        manifest = super().submit(weights, name)
        self.found_canonical(manifest)
        return manifest

    def found_canonical(self, manifest: str) -> None:
        """Sign it as a vetter does."""
        record = intake.read_record(self.store, manifest)
        keep_conversion(self.settings, record, "of a test", record)

    def about(self, manifest: str, run: str = "") -> dict[str, Any]:
        """All that the evidence of a run on a submission depends on."""
        calibration = load_calibration(self.settings.calibration)
        assert calibration is not None
        record = intake.read_record(self.store, manifest)
        return {
            "manifest": manifest,
            "method": METHOD,
            "params": calibration.bank.methods[METHOD].params,
            "code": code_digest("detect", METHOD),
            "data": {},
            "run": run,
            "seed_commitment": intake.seed_of(self.settings, record, run).commitment,
        }

    def request(self, manifest: str, effect: float | None, run: str = "", **more: Any) -> dict[str, Any]:
        """What the gate is asked to judge: evidence in which the target stands out by `effect`."""
        calibration = load_calibration(self.settings.calibration)
        assert calibration is not None
        params = calibration.bank.methods[METHOD].params
        found = label_norms() if effect is None else label_norms(backdoor=TARGET, effect=effect)
        evidence = {k: v for k, v in replace(found, params=params).to_json().items() if k != "seed"}
        about = self.about(manifest, run) | {"effect": effect}
        given = {"sandbox_level": 1, "evidence": evidence, "seconds": 1.0}
        signed = signed_results.find(self.settings, EVIDENCE, about)
        signed = signed or signed_results.save(self.settings, EVIDENCE, about, given)
        return {
            "manifest": manifest,
            "run": run,
            "evidence": {METHOD: signed.key},
            "failures": {},
            "reference_data": None,
            "sandbox_level": 1,
            **more,
        }
