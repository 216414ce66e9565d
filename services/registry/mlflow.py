"""The one door to MLflow: a registered model's versions, tags and aliases in our words.

Model versions there are numbered by MLflow; which version of ours each is stands in its tag ``millrace.version``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from millrace.services.errors import MirrorError
from millrace.services.registry.lineage import STATE, VERSION, Listed

FOLDER = "version"  # of a run's artifacts
PAGE = 100  # model versions a call


class MlflowRegistry:
    """One registered model, with an experiment of the same name that holds the artifacts."""

    def __init__(self, uri: str, model: str) -> None:
        self._uri = uri
        self._model = model
        with self._errors():
            self._client: Any = MlflowClient(uri, uri)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, OSError) as error:  # a failed upload is requests', which are OSErrors
            raise MirrorError(f"MLflow at {self._uri}: {str(error).splitlines()[0]}") from error

    def versions(self) -> list[Listed]:
        """What stands there, oldest first; where nothing does, the model is made."""
        with self._errors():
            self._make_model()
            model_versions, token = list[Any](), None
            while True:
                page = self._client.search_model_versions(f"name = '{self._model}'", max_results=PAGE, page_token=token)
                model_versions += page
                if not (token := page.token):
                    return sorted(
                        (Listed(str(model_version.version), dict(model_version.tags)) for model_version in model_versions),
                        key=lambda model_version: int(model_version.number),
                    )

    def _make_model(self) -> None:
        try:
            self._client.create_registered_model(self._model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def aliases(self) -> dict[str, str]:
        """Alias -> number."""
        with self._errors():
            return {str(name): str(number) for name, number in self._client.get_registered_model(self._model).aliases.items()}

    def register(self, folder: Path, tags: Mapping[str, str], metrics: Mapping[str, float]) -> str:
        """Upload an exported folder and register it; its number. Done again after half of it was done, it goes on."""
        with self._errors():
            run = self._run(tags[VERSION], tags[STATE])
            self._client.log_batch(run, metrics=[Metric(name, value, 0, 0) for name, value in metrics.items()])
            self._client.log_artifacts(run, str(folder), FOLDER)
            self._client.update_run(run, status="FINISHED")
            source = f"runs:/{run}/{FOLDER}"
            model_version = self._client.create_model_version(self._model, source, run, tags=dict(tags), await_creation_for=0)
            return str(model_version.version)

    def _run(self, version: str, state: str) -> str:
        """The run that holds a version's artifacts, made where there is none."""
        experiment = self._client.get_experiment_by_name(self._model)
        place = experiment.experiment_id if experiment else self._client.create_experiment(self._model)
        query = f"tags.`{VERSION}` = '{version}' and tags.`{STATE}` = '{state}'"
        runs = self._client.search_runs([place], query, max_results=1)
        run = runs[0] if runs else self._client.create_run(place, run_name=version, tags={VERSION: version, STATE: state})
        return str(run.info.run_id)

    def tag(self, number: str, tags: Mapping[str, str]) -> None:
        """Set tags of a model version."""
        with self._errors():
            for name, value in tags.items():
                self._client.set_model_version_tag(self._model, number, name, value)

    def name(self, alias: str, number: str | None) -> None:
        """Let an alias name a model version, or none."""
        with self._errors():
            if number is None:
                self._client.delete_registered_model_alias(self._model, alias)
            else:
                self._client.set_registered_model_alias(self._model, alias, number)
