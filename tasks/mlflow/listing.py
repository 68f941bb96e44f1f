"""All that the registry holds: MLflow's searches leave out what is tagged as a prompt, and every writer can tag.

A model that carries the tag is left out itself. Of a version that carries it, or did when it was deleted, the whole
model's versions are left out. So no search is taken for everything: models are asked for with the tag as well, and
where a search lacks a version that its model names as a latest one, the versions are asked for by their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from tasks.mlflow.answers import OddAnswer, pages, text

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.tracking import MlflowClient

IS_PROMPT = "mlflow.prompt.is_prompt"
# more than MLflow leaves out, which is "true" alone: its own client refuses the word in any case
TAGGED = f"tags.`{IS_PROMPT}` != 'false'"
NUMBER = re.compile(r"[1-9][0-9]{0,8}")
# as many as one call may ask for
MODELS, VERSIONS = 1000, 10_000
# of one model: no one asks for more versions by their numbers
MOST_NUMBERS = 10_000

# (filter, token of the page) to what is on the page, and the token of the next one
Search = Callable[[str, str | None], tuple[Any, str | None]]


def listed(search: Search, which: str = "") -> Iterator[Any]:
    """What a search finds by a filter, and then what it leaves out because it is tagged; raises OddAnswer."""
    yield from (item for page in pages(partial(search, which)) for item in page)
    yield from listed_tagged(search, which)


def listed_tagged(search: Search, which: str = "") -> Iterator[Any]:
    """What carries the tag; raises OddAnswer."""
    asked = f"{which} AND {TAGGED}" if which else TAGGED
    yield from (item for page in pages(partial(search, asked)) for item in page)


def models_of(client: MlflowClient) -> Search:
    """The search for registered models."""

    def search(which: str, token: str | None) -> tuple[Any, str | None]:
        # ordered by what does not change, so that no page skips a model that is written to meanwhile
        found = client.search_registered_models(which, max_results=MODELS, order_by=["name ASC"], page_token=token)
        return found, found.token

    return search


def versions_of(client: MlflowClient) -> Search:
    """The search for versions of models."""

    def search(which: str, token: str | None) -> tuple[Any, str | None]:
        found: Any = client.search_model_versions(
            which, max_results=VERSIONS, order_by=["name ASC", "version_number DESC"], page_token=token
        )
        return found, found.token

    return search


def every_model(client: MlflowClient, prefix: str) -> list[RegisteredModel]:
    """Every model whose name begins so; raises OddAnswer."""
    found = listed(models_of(client), f"name LIKE '{prefix}%'")
    # LIKE is blind to case in SQLite
    return [model for model in found if text(model.name).startswith(prefix)]


def every_version(client: MlflowClient, models: Iterable[RegisteredModel], which: str) -> Iterator[ModelVersion]:
    """Every version of the models, and whatever else the filter `which` finds; raises OddAnswer."""
    known = set()
    for page in pages(partial(versions_of(client), which)):
        known |= {(text(version.name), text(version.version)) for version in page}
        yield from page
    for model in models:
        latest = {text(version.version): version for version in model.latest_versions or ()}
        if any((text(model.name), number) not in known for number in latest):
            yield from (latest | _by_number(client, text(model.name), latest)).values()


def _by_number(client: MlflowClient, model: str, latest: Iterable[str]) -> dict[str, ModelVersion]:
    highest = max((int(number) for number in latest if NUMBER.fullmatch(number)), default=0)
    asked = (
        (str(number), version_at(client, model, str(number))) for number in range(1, min(highest, MOST_NUMBERS) + 1)
    )
    return {number: version for number, version in asked if version is not None}


def model_at(client: MlflowClient, model: str) -> RegisteredModel | None:
    """The model of this name; None when the registry has none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def version_at(client: MlflowClient, model: str, version: str) -> ModelVersion | None:
    """The version that was asked for; None when the registry has none. Raises OddAnswer for another."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(model, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    if (found.name, text(found.version)) != (model, version):
        got = f"version {text(found.version)!r:.40} of {found.name!r:.80}"
        raise OddAnswer(f"{got} where version {version} of {model} was asked for")
    return found


def loaded_from(client: MlflowClient, model: str, version: str) -> str | None:
    """Where MLflow loads a version from; None when the registry has no such version."""
    from mlflow.exceptions import MlflowException

    try:
        return text(client.get_model_version_download_uri(model, version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
