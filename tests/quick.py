"""A fast but real installation: few sweeps, one required method, and references made with exactly that.

In it a clean small network on digits passes and one with a BadNets patch fails, each within seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import vetgate.attacks.clean  # noqa: F401 - which is looked up by its name when the references are trained
from flows.bank.calibrate import own
from flows.bank.networks import Member, Recipe
from flows.bank.own import references
from flows.params import load_params
from tasks.settings import Settings
from tests.cached import made_once

PARAMS = """
neural_cleanse: {starts: 2, sweeps: 40, batch: 16, lr: 0.2, again: 1, images: 192, named: 2}
neural_cleanse_unlearning: {rounds: 1, enough: 0.2}
data: {invert: 256, confirm: 128, repair: 512, validate: 256, test: 200}
"""
POLICY = """
name: quick
required: [neural_cleanse]
repair: {enabled: false, methods: []}
guard: {methods: [strip]}
timeout_seconds: 120
"""
RECIPE, COUNT = Recipe(images=1200, epochs=8), 8


def clean() -> list[Member]:
    """The references: plain small networks, alike but for their seeds."""
    return [
        m.model_copy(update={"attack": "clean", "options": {}}) for m in references("digits", COUNT, ("small-cnn",))
    ]


def build(folder: Path, **policy: str) -> dict[str, str]:
    """Environment of the installation, its files in `folder`; `policy` adds lines to the policy, as YAML by key."""
    folder.mkdir(parents=True, exist_ok=True)
    params, rules, calibration = folder / "params.yaml", folder / "policy.yaml", folder / "calibration.json"
    params.write_text(PARAMS)
    rules.write_text(POLICY + "".join(f"{key}: {value}\n" for key, value in policy.items()))
    if not calibration.exists():
        calibrate("quick", folder, PARAMS)
    return {"VETGATE_PARAMS": str(params), "VETGATE_POLICY": str(rules), "VETGATE_CALIBRATION": str(calibration)}


def calibrate(name: str, folder: Path, text: str) -> None:
    """Lay the calibration of the references under these parameters into `folder`; they are trained once a machine."""

    def make(draft: Path) -> None:
        with tempfile.TemporaryDirectory() as room:
            params = Path(room, "params.yaml")
            params.write_text(text)
            own(Settings(home=Path(room)), load_params(params), clean(), RECIPE, draft / "calibration.json", jobs=1)

    recipe = [text, RECIPE.model_dump(), [member.model_dump() for member in clean()]]
    made_once(f"calibration-{name}", folder, make, code=[Path(__file__)], recipe=recipe)
