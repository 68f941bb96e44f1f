"""Suppliers and onlookers of a running service: what they hand in, and what they see in store and registry."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
import yaml
from safetensors.torch import load_file, save_file

from tasks.secret_file import secret_at
from tasks.settings import Settings, load_settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tests.service.running import Service, tail, until_true
from vetgate.shape import Blob

VERDICT_SECONDS = 240.0


@dataclass(frozen=True)
class World:
    """One running service as others use it."""

    service: Service

    @property
    def settings(self) -> Settings:
        """The settings of a command that uses the service."""
        names = {key.removeprefix("VETGATE_").lower(): v for key, v in self.service.environment.items() if own(key)}
        return load_settings(**names)

    @property
    def store(self) -> Store:
        """The service's store."""
        return open_store(self.settings)

    @contextmanager
    def registry(self) -> Iterator[Any]:
        """A client of the MLflow server, as anybody has one."""
        from mlflow.tracking import MlflowClient

        yield MlflowClient(self.settings.tracking_uri, self.settings.tracking_uri)

    def register(self, directory: Path, model: str, **tags: str) -> str:
        """Register a submission directory in MLflow, by nothing but MLflow, with these tags of `vet.`; the version."""
        from mlflow.exceptions import MlflowException

        with self.registry() as client:
            run = client.create_run(client.create_experiment(f"supplier-of-{model}"))
            client.log_artifacts(run.info.run_id, str(directory), "submission")
            try:
                client.create_registered_model(model)
            except MlflowException:
                assert client.get_registered_model(model).name == model
            source = f"{run.info.artifact_uri}/submission"
            own = {f"vet.{key}": value for key, value in tags.items()}
            return str(client.create_model_version(model, source, run_id=run.info.run_id, tags=own).version)

    def aliases(self, name: str, room: str = "prod") -> dict[str, str]:
        """The aliases of prod.<name>, or of another model of that name, none where there is no such model."""
        with self.registry() as client:
            found = client.search_registered_models(f"name = '{room}.{name}'")
            return {alias: str(version) for model in found for alias, version in model.aliases.items()}

    def results(self, manifest: str) -> list[Blob]:
        """Every published result of a submission."""
        return [json.loads(self.store.read(key)) for key in self.store.list(f"results/{manifest}/")]

    def verdict(self, manifest: str, seconds: float = VERDICT_SECONDS) -> str:
        """Its verdict, as soon as there is one."""
        until_true(lambda: bool(self.results(manifest)), seconds, lambda: tail(self.service.log))
        return str(self.results(manifest)[0]["verdict"])

    def champion(self, name: str, seconds: float = VERDICT_SECONDS) -> str:
        """The version that is champion, as soon as there is one."""
        until_true(lambda: "champion" in self.aliases(name), seconds, lambda: tail(self.service.log), pause=0.5)
        return self.aliases(name)["champion"]

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Nobody hears of anything: webhooks are signed with a secret that is not ours, events trigger nothing.

        Nor does anything happen by the clock. Webhooks that were switched off the gate would switch on again. It sets
        their secret anew once a minute, too: call `lose` before what must not be heard of a while later.
        """
        self.lose()
        try:
            yield
        finally:
            self._hear(secret_at(self.settings.webhook_secret), True)

    def lose(self) -> None:
        """From now on, for less than a minute at the worst, no webhook and no event is heard of."""
        self._hear("lost on the way", False)

    def _hear(self, secret: str, on: bool) -> None:
        with self.registry() as client:
            for hook in client.list_webhooks():
                client.update_webhook(hook.webhook_id, secret=secret)
        with httpx.Client(base_url=self.service.about["prefect"], timeout=30) as prefect:
            for automation in prefect.post("/automations/filter", json={}).json():
                prefect.patch(f"/automations/{automation['id']}", json={"enabled": on}).raise_for_status()
            for deployment in prefect.post("/deployments/filter", json={}).json():
                done = "resume_deployment" if on else "pause_deployment"
                prefect.post(f"/deployments/{deployment['id']}/{done}").raise_for_status()
        # MLflow reads its webhooks anew, see MLFLOW_WEBHOOK_CACHE_TTL
        time.sleep(3)


def own(key: str) -> bool:
    return key.startswith("VETGATE_") and key != "VETGATE_S3_COMMAND"


def variant(honest: Path, folder: Path, name: str, noise: int = 0) -> Path:
    """The honest submission under another name, its weights moved a little where `noise` is not 0."""
    directory = folder / f"{name}-{noise}"
    shutil.copytree(honest, directory)
    described = yaml.safe_load((directory / "submission.yaml").read_text()) | {"name": name}
    (directory / "submission.yaml").write_text(yaml.safe_dump(described))
    if noise:
        torch.manual_seed(noise)
        weights = load_file(directory / "model.safetensors")
        moved = {k: v + 1e-4 * torch.randn_like(v) if v.is_floating_point() else v for k, v in weights.items()}
        os.unlink(directory / "model.safetensors")
        save_file(moved, directory / "model.safetensors")
    return directory
