"""Old predictions make way for new ones: Label Studio only ever adds, and shows the oldest.

The oldest one takes over the content of the newest, and the others are deleted. Its number stays: whoever has the task
open sends it along with the annotation, which Label Studio refuses if there is no such prediction any more.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelstudio_backend.client import LabelStudioClient, LabelStudioError
from labelstudio_backend.model_options import FAILED_VERSION

__all__ = ["Replacer", "Stale", "is_older_version", "replace_predictions", "stale_predictions"]

logger = logging.getLogger(__name__)

_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds between looks at whether Label Studio has stored the new predictions."""
_WAITING = 200
_VERSION = re.compile(r"(.+)-[0-9a-f]{10}")


def is_older_version(version: object, current: str) -> bool:
    """Whether a prediction of one version is out of date once there is one of another.

    That are those that failed, and those of the same model with other labels, prompts or settings; a different model's
    predictions may have been made to compare the two.

    >>> is_older_version("playground-0123456789", "playground-abcdefabcd"), is_older_version("toy-v1", "toy-v2")
    (True, False)
    """
    if not isinstance(version, str) or version == current:
        return False
    ours, other = _VERSION.fullmatch(current), _VERSION.fullmatch(version)
    return version == FAILED_VERSION or (ours is not None and other is not None and ours.group(1) == other.group(1))


@dataclass(frozen=True)
class Stale:
    """Predictions of a task that a new one replaces.

    Attributes:
        task: its number.
        version: of the new one.
        old: numbers of the predictions to replace.
        known: numbers of all its predictions so far; one of this version beyond them is the new one.
    """

    task: int
    version: str
    old: tuple[int, ...]
    known: frozenset[int]


def stale_predictions(task: int | None, predictions: object, version: str) -> Stale | None:
    """Which of a task's predictions a new one replaces.

    Args:
        task: its number.
        predictions: as Label Studio sends them with the task.
        version: of the new prediction, or that of a failed one.

    Returns:
        ``None`` where there are none.
    """
    if task is None or not isinstance(predictions, Sequence) or isinstance(predictions, str):
        return None
    found = [each for each in predictions if isinstance(each, Mapping) and isinstance(each.get("id"), int)]
    old = tuple(each["id"] for each in found if _makes_way(each.get("model_version"), version))
    return Stale(task, version, old, frozenset(each["id"] for each in found)) if old else None


def _makes_way(version: object, new: str) -> bool:
    return is_older_version(version, new) or version == new == FAILED_VERSION


def replace_predictions(client: LabelStudioClient, stale: Stale) -> int | None:
    """Put a task's newest prediction in the place of its old ones.

    Args:
        client: signed in.
        stale: the old ones.

    Returns:
        How many predictions were replaced; ``None`` where there is no new one yet.

    Raises:
        LabelStudioError: it cannot be done; at least one prediction stays.
    """
    found = {int(each["id"]): each for each in client.predictions(stale.task)}
    fresh = _new_ones(found, stale)
    if not fresh:
        return None
    # Only what Label Studio itself says is older: a request may come from anybody, and the token may delete anything.
    left = [
        each
        for each in sorted(found)
        if each in stale.old and _makes_way(found[each].get("model_version"), stale.version)
    ]
    if not left:
        return 0
    kept, *others = left
    client.update_prediction(kept, {name: found[fresh[-1]][name] for name in ("result", "score", "model_version")})
    for number in (*others, fresh[-1]):
        client.delete_prediction(number)
    return 1 + len(others)


class Replacer:
    """Replaces old predictions once Label Studio has stored the new ones. To be used from one event loop.

    Args:
        url: the server.
        token: gives the token; without one nothing can be replaced.
    """

    def __init__(self, url: str, token: Callable[[], str | None]) -> None:
        self._url = url
        self._token = token
        self._queue: asyncio.Queue[list[Stale]] = asyncio.Queue(_WAITING)
        self._task: asyncio.Task[None] | None = None
        self.reason = ""

    @property
    def state(self) -> str:
        """Whether old predictions are replaced, as a sentence."""
        if self._token() is None:
            return "no: without a token old predictions cannot be replaced; pass --token-file"
        return f"no: {self.reason}" if self.reason else "yes"

    def start(self) -> None:
        """Begin to work, in the background."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End; what was not replaced stays until the next time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def schedule(self, stale: Iterable[Stale]) -> None:
        """Replace old predictions once there are new ones; forgotten where too many wait."""
        found = list(stale)
        if not found or self._token() is None:
            return
        try:
            self._queue.put_nowait(found)
        except asyncio.QueueFull:
            logger.warning("old predictions of %d tasks were left, because many others wait", len(found))

    async def _run(self) -> None:
        while True:
            stale = await self._queue.get()
            token = self._token()
            if token is None:
                continue
            try:
                await self._replace(stale, token)
                self.reason = ""
            except LabelStudioError as error:
                self.reason = str(error)
                logger.warning("old predictions were left: %s", error)
            except Exception:
                logger.exception("old predictions were left")

    async def _replace(self, stale: Sequence[Stale], token: str) -> None:
        with LabelStudioClient(self._url, token) as client:
            for pause in _PAUSES:
                await asyncio.sleep(pause)
                # Label Studio stores all predictions of a request together, so one task tells of all.
                if await asyncio.to_thread(_has_new, client, stale[-1]):
                    break
            else:
                logger.warning("old predictions of %d tasks were left: Label Studio stored no new ones", len(stale))
                return
            for each in stale:
                await asyncio.to_thread(replace_predictions, client, each)


def _has_new(client: LabelStudioClient, stale: Stale) -> bool:
    return bool(_new_ones({int(each["id"]): each for each in client.predictions(stale.task)}, stale))


def _new_ones(found: Mapping[int, Mapping[str, Any]], stale: Stale) -> list[int]:
    """Numbers of the predictions that may take the place of old ones; another model's may have come meanwhile."""
    return sorted(
        number
        for number, each in found.items()
        if number not in stale.known and each.get("model_version") == stale.version
    )
