"""The backend's logic under the ``label-studio-ml`` library, for those who run their models with it.

Copy nothing: point ``label-studio-ml`` to a file that says ``from labelstudio_backend.ml_adapter import TclModel``.
Version 1.0.9 passes the context in ``kwargs`` and keeps one model for all projects; 2.x passes it by name and makes a
model for every request, so what is expensive is kept for the process. Settings come from ``TCL_MODEL``,
``LABEL_STUDIO_URL``, ``LABEL_STUDIO_TOKEN`` and ``TCL_STATE_DIR``.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from labelstudio_backend.image_fetch.locations import Owner
from labelstudio_backend.interactive import Question, answer, answer_command
from labelstudio_backend.known_regions import results_of_task
from labelstudio_backend.labeling_config import ProjectConfig, parse_project_config
from labelstudio_backend.model_options import FAILED_VERSION, ModelOptions, model_version
from labelstudio_backend.predictor import Prediction, Predictor
from labelstudio_backend.prompts import PromptStore
from labelstudio_backend.requests import Asked, Context, freeze, read_context
from labelstudio_backend.results import text_result
from labelstudio_backend.schemas import project_number
from labelstudio_backend.settings import DEFAULT_URL, ImageSettings, default_state_dir
from labelstudio_backend.task_answer import asked_images, field_of_unusable, prompt_field, put_together
from tcl_core.errors import TclError

__all__ = ["TclModel"]

logger = logging.getLogger(__name__)

_CACHE_BYTES = 1 << 30


class _Engine:
    """Model, images and prompts of this process; one request at a time."""

    def __init__(self) -> None:
        self.options = ModelOptions(os.environ.get("TCL_MODEL", "playground"))
        self.store = PromptStore(Path(os.environ.get("TCL_STATE_DIR") or default_state_dir()) / "prompts.json")
        self._lock = threading.Lock()
        self._fetcher = ImageSettings(os.environ.get("LABEL_STUDIO_URL", DEFAULT_URL)).fetcher(
            os.environ.get("LABEL_STUDIO_TOKEN") or None
        )
        # Nobody says when the process ends, so the loop's thread must not keep it from ending.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    @cached_property
    def _predictor(self) -> Predictor:
        """Loaded with the first prediction, because Label Studio waits three seconds only for all else."""
        return Predictor(self.options.load(), self.options, _CACHE_BYTES)

    def version(self, config: ProjectConfig, project: str) -> str:
        return model_version(self.options, config, self.store.get(project))

    def predict(
        self, task: Mapping[str, Any], config: ProjectConfig, project: str, asked: Asked | None
    ) -> tuple[list[dict[str, Any]], float, bool]:
        """Answer for one task, and remember a new prompt.

        Returns:
            Results, the score, and whether an image of the task could not be predicted.
        """
        images = asked_images(config, task.get("data") or {}, asked)
        context, known = (None, ()) if asked is None else (asked.context, _known(task))
        found: list[Prediction | str] = []
        with self._lock:
            added = freeze(self.store.get(project))
            for image, url in images:
                try:
                    if isinstance(url, TclError):
                        raise url
                    owner = Owner(task.get("id"), project_number(project))
                    encoded = asyncio.run_coroutine_threadsafe(self._fetcher.fetch(url, owner), self._loop).result()
                    answered = answer(self._predictor, Question(image, added, context, known), encoded)
                except TclError as error:
                    found.append(str(error))
                    continue
                found.append(answered.prediction)
                if answered.learned is not None:
                    try:
                        self.store.add(project, *answered.learned)
                    except TclError as error:
                        logger.error("the prompt is not remembered: %s", error)
        together = put_together(images, found)
        if together.reason:
            level = logging.ERROR if together.failed else logging.WARNING
            logger.log(level, "task %s: %s", task.get("id"), together.reason)
        results = [result for each in together.drawn for result in each.results]
        field = prompt_field(config, None) if asked is None else asked.config
        if field is not None:
            results += text_result(field, together.lines(asked))
        return results, together.score, together.failed


@lru_cache(maxsize=1)
def _engine() -> _Engine:
    return _Engine()


def _known(task: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    return results_of_task(task.get("drafts"), task.get("annotations"), task.get("predictions"))


class TclModel(LabelStudioMLBase):
    """Text-prompted pre-annotation, for ``label-studio-ml`` 1.0.9 and 2.x."""

    def setup(self) -> None:
        """Tell 2.x the version of what will be predicted; loads nothing."""
        try:
            config = parse_project_config(str(self.label_config))
            self.set("model_version", _engine().version(config, self._project()))
        except TclError as error:
            # A backend may be connected before its project is configured.
            logger.warning("%s", error)

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Predict tasks.

        Args:
            tasks: Label Studio's tasks.
            context: what was typed or drawn; ``None`` asks for the default prediction.
            **kwargs: whatever else the library passes.

        Returns:
            A prediction for every task; for one that failed, and for one without regions, the reason stands in the
            prompt field, if the project has one, and in the log.

        Raises:
            SettingsError: the project's configuration cannot be used, and has no prompt field to say so.
        """
        engine, project = _engine(), self._project()
        try:
            config = parse_project_config(str(self.label_config))
        except TclError as error:
            if (field := field_of_unusable(str(self.label_config), context)) is None:
                raise
            logger.error("%s", error)
            said = text_result(field, [str(error)] if context else ["Not predicted:", str(error)])
            return [{"result": said, "score": 0.0, "model_version": FAILED_VERSION} for _ in tasks]
        predictions = []
        for task in tasks:
            asked = None
            try:
                if context is not None:
                    config = config.for_task(task.get("data") or {})
                asked = read_context(context, config)
                lines = answer_command(asked, engine.store, project)
                if lines is not None:
                    field = prompt_field(config, context)
                    result, score, failed = [] if field is None else text_result(field, lines), 1.0, False
                elif asked is not None and asked.context == Context():
                    result, score, failed = [], 0.0, False
                else:
                    result, score, failed = engine.predict(task, config, project, asked)
                version = engine.version(config, project)
            except TclError as error:
                logger.error("task %s: %s", task.get("id"), error)
                field = prompt_field(config, context)
                result, score, failed = [] if field is None else text_result(field, [str(error)]), 0.0, True
                version = FAILED_VERSION
            predictions.append(
                {"result": result, "score": score, "model_version": FAILED_VERSION if failed else version}
            )
        return predictions

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Learn nothing from annotations; the library wants the method."""
        return {}

    def _project(self) -> str:
        """Whose prompts count; 1.0.9 does not say, so there projects of one configuration share them."""
        known = getattr(self, "project_id", None)
        return str(known) if known else hashlib.sha256(str(self.label_config).encode()).hexdigest()[:16]
