"""The process that holds the model: a damaged image or a lack of memory can end it, but not the server."""

from __future__ import annotations

import json
import logging
import signal
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

from labelstudio_backend.interactive import Question, answer
from labelstudio_backend.model_options import ModelOptions
from tcl_core.errors import TclError, is_out_of_memory

__all__ = ["Failed", "Job", "Ready", "Reply", "serve_jobs"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A question about an image."""

    question: Question
    image: bytes


@dataclass(frozen=True)
class Ready:
    """The model is loaded.

    Attributes:
        model: its name.
        device: where it runs.
    """

    model: str
    device: str


@dataclass(frozen=True)
class Reply:
    """The answer, its results as JSON already: the server has better things to do than to write numbers.

    Attributes:
        results: a JSON list, in ASCII.
        regions: how many results there are.
        score: of the prediction.
        notes: see :class:`labelstudio_backend.predictor.Prediction`.
        learned: see :class:`labelstudio_backend.interactive.Answer`.
        reason: why there are no regions, where there are none.
        unkept: why what was learned is not remembered, if it is not.
    """

    results: bytes
    regions: int
    score: float
    notes: tuple[str, ...]
    learned: tuple[str, str] | None
    reason: str = ""
    unkept: str = ""


@dataclass(frozen=True)
class Failed:
    """Why there is no answer, or no model.

    Attributes:
        reason: for the user, without a traceback.
        internal: whether the fault is the program's.
    """

    reason: str
    internal: bool = False


def serve_jobs(connection: Connection, options: ModelOptions, cache_bytes: int) -> None:
    """Load the model, then answer one job after the other until the connection ends.

    Args:
        connection: first sends `Ready` or `Failed`, then `Reply` or `Failed` for every `Job`.
        options: the model.
        cache_bytes: bound of what is kept of images.
    """
    # Ctrl-C reaches all processes of a terminal; the server ends this one when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from labelstudio_backend.predictor import Predictor

        segmenter = options.load()
        # Now, because the first annotator would wait for it.
        segmenter.embed_background_names()
        predictor = Predictor(segmenter, options, cache_bytes)
    except Exception as error:
        connection.send(_failure(error))
        return
    connection.send(Ready(segmenter.model.name, str(segmenter.model.device)))
    while True:
        try:
            job: Job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            found = answer(predictor, job.question, job.image)
            reply: Reply | Failed = Reply(
                results=json.dumps(found.prediction.results, allow_nan=False, separators=(",", ":")).encode("ascii"),
                regions=len(found.prediction.results),
                score=found.prediction.score,
                notes=found.prediction.notes,
                learned=found.learned,
                reason=found.prediction.reason,
            )
        except Exception as error:
            reply = _failure(error)
        connection.send(reply)


def _failure(error: Exception) -> Failed:
    if isinstance(error, TclError):
        return Failed(str(error))
    if is_out_of_memory(error):
        logger.error("not enough memory\n%s", traceback.format_exc())
        return Failed("there is not enough free memory for this image; use a smaller one, or another device")
    logger.error("internal error\n%s", traceback.format_exc())
    return Failed(f"internal error, {type(error).__name__}", internal=True)
