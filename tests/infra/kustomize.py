"""As much of kustomize as infra/kubernetes uses: resources, components, strategic-merge patches, image tags.

Lists of mappings with a `name` are merged by it, other lists replaced. What is not understood is an error, so that an
overlay cannot use more than this unnoticed.
"""

from __future__ import annotations

import functools
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from tests.infra.known import ROOT
from vetgate.shape import Blob

HERE = ROOT / "infra" / "kubernetes"
FIELDS = {"apiVersion", "kind", "resources", "components", "patches", "images"}


def manifests(folder: str) -> list[Blob]:
    """The rendered resources of a folder, to be tampered with at will."""
    return deepcopy(_rendered(folder))


@functools.cache
def _rendered(folder: str) -> list[Blob]:
    return render(HERE / folder)


def documents(path: Path) -> list[Blob]:
    """The documents of a YAML file."""
    return [blob for blob in yaml.load_all(path.read_text(), yaml.CSafeLoader) if blob is not None]


def render(folder: Path, onto: list[Blob] | None = None) -> list[Blob]:
    """The resources of a kustomization; a component patches those `onto` which it is put."""
    (wanted,) = documents(folder / "kustomization.yaml")
    if extra := set(wanted) - FIELDS:
        raise ValueError(f"{folder.name}: this renderer knows no {', '.join(sorted(extra))}")
    found = list(onto or [])
    for name in wanted.get("resources", []):
        path = (folder / name).resolve()
        found += render(path) if path.is_dir() else documents(path)
    for name in wanted.get("components", []):
        found = render((folder / name).resolve(), found)
    for patch in wanted.get("patches", []):
        for change in documents(folder / patch["path"]):
            places = [i for i, blob in enumerate(found) if identity(blob) == identity(change)]
            if len(places) != 1:
                raise ValueError(f"{folder.name}: {patch['path']} fits {len(places)} resources, not one")
            found[places[0]] = _merged(found[places[0]], change)
    for image in wanted.get("images", []):
        tag = f"@{image['digest']}" if "digest" in image else f":{image['newTag']}"
        for blob in found:
            for container in containers(blob):
                if container["image"] == image["name"]:
                    container["image"] += tag
    if len({identity(blob) for blob in found}) != len(found):
        raise ValueError(f"{folder.name}: a resource is there twice")
    return found


def identity(blob: Blob) -> tuple[str, str, str, str]:
    """What tells one resource from all others."""
    about = blob["metadata"]
    return blob["apiVersion"], blob["kind"], about.get("namespace", ""), about["name"]


def pod_of(blob: Blob) -> Blob | None:
    """The pod template of a workload, or None."""
    spec = blob.get("spec", {})
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    template: Blob | None = spec.get("template")
    return template if blob["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob") else None


def containers(blob: Blob) -> list[Blob]:
    """The containers of a workload, those of its beginning among them."""
    template = pod_of(blob)
    return [] if template is None else [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list) and all(isinstance(i, dict) and "name" in i for i in old + new):
        changes = {item["name"]: item for item in new}
        merged = [_merged(item, changes.pop(item["name"], item)) for item in old]
        return [*merged, *changes.values()]
    return new
