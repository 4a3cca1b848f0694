"""Old predictions make way for new ones: Label Studio only ever adds, and shows the oldest.

The oldest one takes over the content of the newest, and the others are deleted. Its number stays: whoever has the task
open sends it along with the annotation, which Label Studio refuses if there is no such prediction any more.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labelstudio_backend.client import GoneError, LabelStudioClient, LabelStudioError, SignInError
from labelstudio_backend.model_options import FAILED_VERSION

__all__ = ["PAUSES", "Replacer", "Stale", "is_older_version", "replace_predictions", "stale_predictions"]

logger = logging.getLogger(__name__)

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds between looks at whether Label Studio has stored the new predictions."""
_WAITING = 200
"""Requests that wait at most."""
_TASKS_OF_A_TURN = 10
"""So many tasks of a request are worked on before it is another one's turn."""
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


@dataclass(order=True)
class _Waiting:
    """Predictions of one request that wait to be replaced.

    Attributes:
        due: when to look again, by the loop's clock.
        number: of the request, in the order of coming.
        looks: how often it was looked at in vain.
        stale: what is left to replace.
        ready: whether Label Studio is known to have stored the new predictions.
    """

    due: float
    number: int
    looks: int = field(default=0, compare=False)
    stale: list[Stale] = field(default_factory=list, compare=False)
    ready: bool = field(default=False, compare=False)


class Replacer:
    """Replaces old predictions once Label Studio has stored the new ones. To be used from one event loop.

    Requests take turns: one whose predictions are never stored, or one of many tasks, does not hold up the others.

    Args:
        url: the server.
        token: gives the token; without one nothing can be replaced.
        pauses: seconds between looks at whether Label Studio has stored the new predictions.
    """

    def __init__(self, url: str, token: Callable[[], str | None], pauses: Sequence[float] = PAUSES) -> None:
        self._url = url
        self._token = token
        self._pauses = pauses
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()
        self._current: _Waiting | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.reason = ""

    @property
    def state(self) -> str:
        """Whether old predictions are replaced, as a sentence."""
        if self._token() is None:
            return "no: without a token old predictions cannot be replaced; pass --token-file"
        return f"no: {self.reason}" if self.reason else "yes"

    @property
    def waiting(self) -> int:
        """Number of requests whose predictions wait to be replaced."""
        return len(self._waiting) + (self._current is not None)

    def start(self) -> None:
        """Begin to work, in the background."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End; what was not replaced stays until the next time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def schedule(self, stale: Iterable[Stale]) -> None:
        """Replace old predictions once there are new ones; where too many wait, the least promising are forgotten."""
        found = list(stale)
        if not found or self._token() is None:
            return
        if len(self._waiting) >= _WAITING:
            # Label Studio stores predictions within seconds, if at all.
            forgotten = max(self._waiting, key=lambda each: (each.looks, -each.number))
            self._waiting.remove(forgotten)
            heapq.heapify(self._waiting)
            logger.warning("old predictions of %d tasks were left, because many others wait", len(forgotten.stale))
        self._push(_Waiting(0.0, next(self._numbers), stale=found), self._pauses[0])

    def _push(self, item: _Waiting, pause: float) -> None:
        item.due = asyncio.get_running_loop().time() + pause
        heapq.heappush(self._waiting, item)
        self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pause = self._waiting[0].due - loop.time() if self._waiting else None
            if pause is None or pause > 0:
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), pause)
                except TimeoutError:
                    pass
                continue
            self._current = heapq.heappop(self._waiting)
            try:
                if (token := self._token()) is not None:
                    await self._turn(self._current, token)
            finally:
                self._current = None

    async def _turn(self, item: _Waiting, token: str) -> None:
        """Work on a request as far as it goes; nothing that goes wrong with it ends the others' turns."""
        try:
            with LabelStudioClient(self._url, token) as client:
                item.ready = item.ready or await asyncio.to_thread(_are_stored, client, item.stale)
                if item.ready:
                    await self._replace_some(client, item.stale)
        except SignInError as error:
            self.reason = str(error)
            logger.warning("old predictions of %d tasks were left: %s", len(item.stale), error)
        except LabelStudioError as error:
            self.reason = str(error)
            self._look_again(item, str(error))
        except Exception:
            logger.exception("old predictions of %d tasks were left", len(item.stale))
        else:
            self.reason = ""
            if not item.ready:
                self._look_again(item, "Label Studio stored no new ones")
            elif item.stale:
                self._push(item, 0.0)

    async def _replace_some(self, client: LabelStudioClient, stale: list[Stale]) -> None:
        """Replace the old predictions of the next few tasks, and take these off the list."""
        for _ in range(min(_TASKS_OF_A_TURN, len(stale))):
            try:
                await asyncio.to_thread(replace_predictions, client, stale[0])
            except GoneError:
                # Somebody else deleted the task or its prediction; the other tasks are not concerned.
                pass
            del stale[0]

    def _look_again(self, item: _Waiting, reason: str) -> None:
        item.looks += 1
        if item.looks < len(self._pauses):
            self._push(item, self._pauses[item.looks])
        else:
            logger.warning("old predictions of %d tasks were left: %s", len(item.stale), reason)


def _are_stored(client: LabelStudioClient, stale: Sequence[Stale]) -> bool:
    """Whether there are new predictions. Label Studio stores all of a request together, so one task tells of all."""
    # Two, because one of them may have been deleted.
    for each in {stale[-1].task: stale[-1], stale[0].task: stale[0]}.values():
        try:
            if _new_ones({int(found["id"]): found for found in client.predictions(each.task)}, each):
                return True
        except GoneError:
            continue
    return False


def _new_ones(found: Mapping[int, Mapping[str, Any]], stale: Stale) -> list[int]:
    """Numbers of the predictions that may take the place of old ones; another model's may have come meanwhile."""
    return sorted(
        number
        for number, each in found.items()
        if number not in stale.known and each.get("model_version") == stale.version
    )
