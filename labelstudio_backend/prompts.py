"""Prompts that annotators type: what a text means, and what a project remembers of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from labelstudio_backend.labeling_config import LabelingConfig, check_prompt
from tcl_core.errors import SettingsError

__all__ = ["Added", "PromptStore", "TypedPrompt", "cleared_text", "read_typed"]

Added = Mapping[str, Sequence[str]]
"""Prompts that were added to a project's labels, by the label's value."""

_MAX_PROMPTS_OF_A_LABEL = 64


@dataclass(frozen=True)
class TypedPrompt:
    """What an annotator's text asks for.

    Attributes:
        action: ``"list"`` or ``"clear"`` the project's prompts, ``"select"`` a label, ``"add"`` a prompt to a label,
            or give a prompt to the ``"nearest"`` label.
        label: the label's value, where the text names it.
        prompt: the prompt; ``None`` stands for all of the label's.
    """

    action: Literal["list", "clear", "select", "add", "nearest"]
    label: str | None = None
    prompt: str | None = None


def read_typed(text: str, config: LabelingConfig, added: Added) -> TypedPrompt:
    """Understand a typed text.

    Args:
        text: such as ``Sofa: red couch``, ``Sofa``, ``red couch``, ``/list``, ``/clear`` or ``/clear Sofa``.
        config: gives the labels and their prompts.
        added: the project's prompts so far.

    Raises:
        VocabularyError: the text cannot be a prompt.
        SettingsError: it is an unknown command, or one for an unknown label.
    """
    words = check_prompt(text)
    by_name = {value.casefold(): value for value in config.values}
    if words.startswith("/"):
        return _read_command(words, by_name)
    name, colon, rest = words.partition(":")
    label = by_name.get(name.strip().casefold())
    if colon and label is not None and rest.strip():
        prompt = check_prompt(rest)
        known = _known_prompts(config, added, label)
        return TypedPrompt(
            "select" if prompt.casefold() in known else "add", label, known.get(prompt.casefold(), prompt)
        )
    if (label := by_name.get(words.rstrip(":").strip().casefold())) is not None:
        return TypedPrompt("select", label)
    for value in config.values:
        if (prompt := _known_prompts(config, added, value).get(words.casefold(), "")) != "":
            return TypedPrompt("select", value, prompt)
    return TypedPrompt("nearest", None, words)


def cleared_text(count: int, label: str | None = None) -> str:
    """What is said after prompts were cleared, those of one label or all.

    >>> cleared_text(1, "Sofa"), cleared_text(2)
    ('1 typed prompt of Sofa cleared', '2 typed prompts cleared')
    """
    return f"{count} typed prompt{'' if count == 1 else 's'}{f' of {label}' if label else ''} cleared"


def _read_command(words: str, by_name: Mapping[str, str]) -> TypedPrompt:
    command, _, rest = words.partition(" ")
    if command == "/list" and not rest:
        return TypedPrompt("list")
    if command != "/clear":
        raise SettingsError(f"{words!r} is not a command; the commands are /list, /clear and /clear LABEL")
    if not rest.strip():
        return TypedPrompt("clear")
    if (label := by_name.get(rest.strip().casefold())) is None:
        raise SettingsError(
            f"{words!r}: there is no label {rest.strip()!r}; the labels are {', '.join(by_name.values())}"
        )
    return TypedPrompt("clear", label)


def _known_prompts(config: LabelingConfig, added: Added, value: str) -> dict[str, str]:
    prompts = [*config.labels[value][0], *added.get(value, ())] or [value]
    return {prompt.casefold(): prompt for prompt in prompts}


class PromptStore:
    """The prompts that were typed, by project and label; they survive a restart.

    One small JSON file, written in one step and locked while it is changed, so that the server and the command line
    may use it at the same time.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(f"{path}.lock", timeout=10)

    def get(self, project: str) -> dict[str, list[str]]:
        """A project's prompts by label, in the order they were typed.

        Raises:
            SettingsError: the file cannot be read.
        """
        return self._read().get(project, {})

    def all(self) -> dict[str, dict[str, list[str]]]:
        """The prompts of all projects.

        Raises:
            SettingsError: the file cannot be read.
        """
        return self._read()

    def add(self, project: str, label: str, prompt: str) -> None:
        """Remember a prompt; of more than 64 for one label the oldest is forgotten.

        Raises:
            SettingsError: the file cannot be read or written.
        """
        with self._changing() as projects:
            prompts = projects.setdefault(project, {}).setdefault(label, [])
            if prompt not in prompts:
                prompts.append(prompt)
                del prompts[:-_MAX_PROMPTS_OF_A_LABEL]

    def clear(self, project: str, label: str | None = None) -> int:
        """Forget a project's prompts, or those of one label; returns how many they were.

        Raises:
            SettingsError: the file cannot be read or written.
        """
        with self._changing() as projects:
            if label is None:
                gone = projects.pop(project, {})
                return sum(map(len, gone.values()))
            return len(projects.get(project, {}).pop(label, []))

    @contextmanager
    def _changing(self) -> Iterator[dict[str, dict[str, list[str]]]]:
        """The content, locked; what was changed in it is written at the end."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            raise SettingsError(f"{self.path}: the prompts cannot be written ({error})") from error
        try:
            projects = self._read()
            yield projects
            self._write(projects)
        finally:
            self._lock.release()

    def _read(self) -> dict[str, dict[str, list[str]]]:
        try:
            data = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"{self.path}: the prompts cannot be read ({error}); repair or remove the file"
            ) from error
        return data

    def _write(self, projects: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        part = self.path.with_name(self.path.name + ".part")
        try:
            part.write_text(json.dumps(projects, ensure_ascii=False, indent=1), encoding="utf-8")
            os.replace(part, self.path)
        except OSError as error:
            raise SettingsError(f"{self.path}: the prompts cannot be written ({error.strerror})") from error
