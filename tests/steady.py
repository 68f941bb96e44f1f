"""An installation like `quick`, with more starts: its verdicts are the same whatever the seed, as rescans need."""

from __future__ import annotations

from pathlib import Path

from tests.quick import calibrate

PARAMS = """
neural_cleanse: {starts: 4, sweeps: 48, batch: 32, lr: 0.1, first: 0.001, patience: 3, again: 1, images: 256, named: 2}
data: {invert: 256, confirm: 128, repair: 512, validate: 256, test: 200}
"""
RATE = "false_alarm_rate: 0.02"
POLICY = f"""
name: steady
required: [neural_cleanse]
repair: {{enabled: false, methods: []}}
guard: {{methods: [strip]}}
timeout_seconds: 120
rescan: {{{RATE}}}
"""


def build(folder: Path) -> dict[str, str]:
    """The fields of Settings that name the installation's files, which are made in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    params, policy, calibration = folder / "params.yaml", folder / "policy.yaml", folder / "calibration.json"
    params.write_text(PARAMS)
    policy.write_text(POLICY)
    if not calibration.exists():
        calibrate("steady", folder, PARAMS)
    return {"params": str(params), "policy": str(policy), "calibration": str(calibration)}


def environment(settled: dict[str, str], home: Path) -> dict[str, str]:
    """The variables that give these settings to a command."""
    return {f"VETGATE_{name.upper()}": value for name, value in settled.items()} | {"VETGATE_HOME": str(home)}
