"""What the backend's Dockerfile and compose file say, for tests and for :mod:`tests.labelstudio.bare_root`."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

__all__ = ["HealthCheck", "compose_service", "expanded", "health_check", "instructions", "pairs", "words_of"]

_REFERENCE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::-([^}]*))?\})")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction of a Dockerfile with what it is given, in order and without comments."""
    for step in DockerfileParser(fileobj=io.BytesIO(text.encode())).structure:
        if step["instruction"] != "COMMENT":
            yield step["instruction"], step["value"]


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """A text with ``$NAME``, ``${NAME}`` and ``${NAME:-default}`` replaced, which both kinds of files know."""
    return _REFERENCE.sub(lambda found: variables.get(found[1] or found[2]) or found[3] or "", text)


def pairs(value: str) -> dict[str, str]:
    """What ``ENV`` and ``ARG`` are given: names with their values."""
    return dict((*word.split("=", 1), "")[:2] for word in shlex.split(value))


def words_of(value: str) -> list[str]:
    """What ``ENTRYPOINT`` and ``CMD`` are given, in their form that needs no shell.

    Raises:
        ValueError: it is a line for a shell, which would keep signals from the program.
    """
    words = json.loads(value)
    if not (isinstance(words, list) and words and all(isinstance(word, str) for word in words)):
        raise ValueError(f"not a list of words: {value}")
    return words


@dataclass(frozen=True)
class HealthCheck:
    """A health check.

    Attributes:
        words: its command.
        interval: seconds between two attempts.
        timeout: seconds for one.
        start_period: seconds in which failures do not count.
        retries: failures in a row after which a container counts as unhealthy.
    """

    words: Sequence[str]
    interval: float = 30
    timeout: float = 30
    start_period: float = 0
    retries: int = 3


def health_check(value: str) -> HealthCheck:
    """What ``HEALTHCHECK`` is given.

    Raises:
        ValueError: it has no command, or an option that Docker does not know.
    """
    options, command, words = value.partition(" CMD ")
    if not command:
        raise ValueError(f"no command: {value}")
    found: dict[str, Any] = {}
    for option in options.split():
        matched = re.fullmatch(r"--(interval|timeout|start-period)=(\d+)([smh])|--(retries)=(\d+)", option)
        if matched is None:
            raise ValueError(f"not an option of a health check: {option}")
        if matched[4]:
            found[matched[4]] = int(matched[5])
        else:
            found[matched[1].replace("-", "_")] = int(matched[2]) * _SECONDS[matched[3]]
    return HealthCheck(words_of(words), **found)


def compose_service(path: Path, name: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """A service of a compose file, with the variables of ``.env`` filled in."""
    return yaml.safe_load(expanded(path.read_text(encoding="utf-8"), variables))["services"][name]
