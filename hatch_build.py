"""Have the wheel carry what vetgate/shipped.py finds at the top of a checkout."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Share(BuildHookInterface[Any]):
    """Puts the paths that pyproject.toml lists into a wheel; an editable install reads the checkout itself."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds."""
        if version != "editable":
            build_data["force_include"] |= {path: f"vetgate/share/{path}" for path in self.config["share"]}
