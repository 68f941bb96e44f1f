"""What MLflow loads of a guarded model by its pyfunc flavour: this installed module, never code beside the model.

The attestation is checked first, by the public keys in VETGATE_TRUST_ROOT. MLflow reads `MLmodel` before it calls us,
so that another loader written into it is never stopped here: check what others hand on by `vetgate verify DIR`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.production.guarded import behind_guards
from flows.production.images import images_of
from flows.production.predictions import FIELDS, prediction
from flows.production.pyfunc_files import check_pyfunc
from tasks.settings import load_settings
from vetgate.errors import BadInput, Stale
from vetgate.trust.keys import TrustRoot, read_trust_root, utc_now
from vetgate.trust.strict_json import as_time
from vetgate.trust.waivers import waived_until

if TYPE_CHECKING:
    from pandas import DataFrame

    from vetgate.guard.guarded import Guarded


class GuardedPyfunc:
    """What MLflow calls: images in, a data frame with a row an image out, until nothing covers the model any more."""

    def __init__(self, guarded: Guarded, classes: tuple[str, ...], until: datetime) -> None:
        self.guarded, self.classes, self.until = guarded, classes, until

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> DataFrame:
        """The fields of `flows.production.predictions` for images (M, C, H, W) in [0, 1].

        They come as an array, nested lists, or a data frame with an image or the pixels of one in a row. Raises
        MLflow's exception: one that a server answers with 400 for what is no images, with 503 once the verdict expired.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
        from pandas import DataFrame

        if utc_now() >= self.until:
            said = str(Stale(f"expected a verdict in force, got one that ended {self.until}; vet the model again"))
            raise MlflowException(said, TEMPORARILY_UNAVAILABLE)
        try:
            if params:
                raise BadInput(f"expected no parameters, got {sorted(params)!r:.200}; leave them out")
            answers = self.guarded.predict(images_of(model_input, self.guarded.shape))
        except BadInput as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        rows = [prediction(answer, self.classes) for answer in answers]
        # a column of labels and None is none of numbers
        return DataFrame({field: [row[field] for row in rows] for field in FIELDS}, dtype=object)


def load_pyfunc(directory: Path, trust: TrustRoot) -> GuardedPyfunc:
    """The guarded model in a directory that `write_pyfunc` wrote; raises as `check_pyfunc` and `guarded_load`."""
    files = check_pyfunc(directory, trust)
    found = behind_guards(files.members, files.claims, files.manifest, lambda sha256: files.guards)
    until = as_time(files.claims["expires"], "expires")
    if files.claims["verdict"] == "WAIVED":
        until = min(until, waived_until(files.claims, utc_now(), trust.revoked.__contains__))
    return GuardedPyfunc(found.guarded, found.submission.class_names, until)


def _load_pyfunc(path: str) -> GuardedPyfunc:
    """What MLflow asks for, with the path of `data` in the directory of a model."""
    return load_pyfunc(Path(path).parent, read_trust_root(load_settings().trust_root))
