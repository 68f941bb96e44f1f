"""Where the files are that vetgate ships and reads: policy, calibration, hyper-parameters, deployments, model bank.

In a checkout they stand at its top, where people edit them. The wheel carries the same tree under `vetgate/share`; what
goes into it is listed in pyproject.toml under `share`.
"""

from __future__ import annotations

from pathlib import Path

from vetgate.errors import StoreError

# the folder that the packages vetgate, tasks and flows are in
PACKAGES = Path(__file__).resolve().parent.parent
SHARE = PACKAGES / "vetgate" / "share"
# a checkout has no such folder
INSTALLED = SHARE.is_dir()
ROOT = SHARE if INSTALLED else PACKAGES

POLICY = ROOT / "infra" / "policies" / "default.yaml"
CALIBRATION = ROOT / "infra" / "calibration" / "default.json"
BANK = ROOT / "infra" / "bank"
PARAMS = ROOT / "params.yaml"
DEPLOYMENTS = ROOT / "prefect.yaml"


def need_checkout(what: str) -> None:
    """Raise StoreError where vetgate is installed from a wheel: `what` writes the files of the project itself."""
    if INSTALLED:
        raise StoreError(f"{what} writes into a checkout of vetgate, got an installed package; run it in a checkout")
