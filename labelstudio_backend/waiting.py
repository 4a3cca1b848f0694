"""Wait until the backend listens: it loads libraries for some seconds before it answers."""

from __future__ import annotations

import time
from collections.abc import Mapping

import httpx

from labelstudio_backend.image_fetch.locations import origin_of
from tcl_core.errors import SettingsError

__all__ = ["wait_for_backend"]

_PAUSE_SECONDS = 1.0
_ANSWER_SECONDS = 5.0


def wait_for_backend(url: str, seconds: float) -> None:
    """Wait until a backend answers.

    Args:
        url: the backend's.
        seconds: how long; 0 asks once.

    Raises:
        SettingsError: the URL is none, nothing listens there, or what does is no backend.
    """
    origin_of(url)
    health = f"{url.rstrip('/')}/health"
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = httpx.get(health, timeout=_ANSWER_SECONDS)
            # With --auth-file it wants a password, which Label Studio has and this command need not know.
            if answer.status_code == httpx.codes.UNAUTHORIZED or _is_backend(answer):
                return
            if answer.status_code == httpx.codes.OK:
                raise SettingsError(
                    f"what answers at {url} is no backend, but perhaps Label Studio itself; give the URL of "
                    "'tcl-annotate label-studio serve' as --backend-url"
                )
            raise SettingsError(
                f"{health} answered with {answer.status_code}; is this the URL of 'tcl-annotate label-studio serve'?"
            )
        except httpx.HTTPError as error:
            if time.monotonic() >= deadline:
                raise SettingsError(
                    f"no backend listens at {url} ({type(error).__name__}); start it with "
                    "'tcl-annotate label-studio serve', give its URL as --backend-url, or pass --no-backend"
                ) from None
        time.sleep(_PAUSE_SECONDS)


def _is_backend(answer: httpx.Response) -> bool:
    """Whether a health check was answered by an ML backend. Label Studio's own says that it is up, and no model."""
    try:
        said = answer.json() if answer.status_code == httpx.codes.OK else None
    except ValueError:
        return False
    return isinstance(said, Mapping) and "model_class" in said
