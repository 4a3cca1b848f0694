"""The backend's logic under the ``label-studio-ml`` library, for those who run their models with it.

Copy nothing: point ``label-studio-ml`` to a file that says ``from labelstudio_backend.ml_adapter import TclModel``.
Version 1.0.9 passes the context in ``kwargs`` and keeps one model for all projects; 2.x passes it by name and makes a
model for every request, so what is expensive is kept for the process. Settings come from ``TCL_MODEL``,
``LABEL_STUDIO_URL``, ``LABEL_STUDIO_TOKEN`` and ``TCL_STATE_DIR``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal
from label_studio_ml.model import LabelStudioMLBase

from labelstudio_backend.answering import Question, answer, answer_command
from labelstudio_backend.labelling_config import parse_labelling_config
from labelstudio_backend.model_options import FAILED_VERSION, ModelOptions, model_version
from labelstudio_backend.pictures.fetching import PictureFetcher
from labelstudio_backend.planning import freeze, read_context
from labelstudio_backend.predictor import Predictor
from labelstudio_backend.prompts import PromptStore
from labelstudio_backend.settings import DEFAULT_URL, PictureSettings, default_state_dir
from tcl_core.errors import ImageError, TclError

__all__ = ["TclModel"]

logger = logging.getLogger(__name__)

_CACHE_BYTES = 1 << 30


class _Engine:
    """Model, pictures and prompts of this process; one request at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.options = ModelOptions(os.environ.get("TCL_MODEL", "playground"))
        self.store = PromptStore(Path(os.environ.get("TCL_STATE_DIR") or default_state_dir()) / "prompts.json")
        self.predictor = Predictor(self.options.load(), self.options, _CACHE_BYTES)
        self._pictures = PictureSettings(os.environ.get("LABEL_STUDIO_URL", DEFAULT_URL))
        self._portal_context = start_blocking_portal()
        self._portal: BlockingPortal = self._portal_context.__enter__()
        self._fetcher: PictureFetcher = self._portal.call(
            self._pictures.fetcher, os.environ.get("LABEL_STUDIO_TOKEN") or None
        )

    def fetch(self, url: object) -> bytes:
        return self._portal.call(self._fetcher.fetch, url)


@lru_cache(maxsize=1)
def _engine() -> _Engine:
    return _Engine()


class TclModel(LabelStudioMLBase):
    """Text-prompted pre-annotation, for ``label-studio-ml`` 1.0.9 and 2.x."""

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Predict tasks.

        Args:
            tasks: Label Studio's tasks.
            context: what was typed or drawn; ``None`` asks for the default prediction.
            **kwargs: whatever else the library passes; ``project`` is used where the object does not know it.

        Returns:
            A prediction for every task; for one that failed an empty one.
        """
        engine = _engine()
        config = parse_labelling_config(str(self.label_config))
        project = str(getattr(self, "project_id", None) or kwargs.get("project") or "")
        asked = read_context(context, config)
        predictions = []
        with engine.lock:
            spoken = answer_command(asked, config, engine.store, project)
            for task in tasks:
                version = model_version(engine.options, config, engine.store.get(project))
                if spoken is not None:
                    predictions.append({"result": spoken, "score": 1.0, "model_version": version})
                    continue
                question = Question(config, freeze(engine.store.get(project)), asked)
                try:
                    url = (task.get("data") or {}).get(config.image_key)
                    if url is None:
                        raise ImageError(f"the task has no {config.image_key!r} in its data")
                    found = answer(engine.predictor, question, engine.fetch(url))
                except TclError as error:
                    logger.warning("task %s: %s", task.get("id"), error)
                    predictions.append({"result": [], "score": 0.0, "model_version": FAILED_VERSION})
                    continue
                if found.learned is not None:
                    engine.store.add(project, *found.learned)
                predictions.append(
                    {"result": found.prediction.results, "score": found.prediction.score, "model_version": version}
                )
        return predictions

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Learn nothing from annotations; the library wants the method."""
        return {}
