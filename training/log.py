"""What a training says while it runs: always a file of JSON lines, and what else is asked for."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from tcl_core.errors import SettingsError

__all__ = ["LOGGERS", "JsonLines", "Logger", "has_line", "make_logger"]


class Logger(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Take numbers by name."""

    def close(self) -> None:
        """Let go of files and connections."""


class JsonLines:
    """Appends a line for each call.

    Args:
        path: the file.
        start: lines of later steps than this are dropped, because those steps are taken again.
    """

    def __init__(self, path: Path, start: int):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= start]
        if len(kept) != len(lines):
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append ``{"step": step, ...}``."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Nothing is held open between lines."""


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # A line that was cut when its process was killed.
        return float("inf")


def has_line(path: Path, step: int, name: str) -> bool:
    """Whether a log has a line of a step with a value of that name.

    Args:
        path: of `JsonLines`; it need not be there.
        step: of the line.
        name: of the value.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return any(_step_of(line) == step and name in json.loads(line) for line in lines)


class TensorBoard:
    """Writes event files (extra ``tensorboard``)."""

    def __init__(self, folder: Path, name: str, start: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingsError("--log tensorboard needs the package tensorboard: pip install tensorboard.") from error
        # Later steps are taken again.
        self._writer = SummaryWriter(str(folder / "tensorboard" / name), purge_step=start + 1 if start else None)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write what is a number; those of an evaluation too."""
        for name, value in values.items():
            if isinstance(value, dict):
                self.write(step, {f"{name}/{key}": part for key, part in value.items()})
            elif isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Wandb:
    """Sends numbers to Weights & Biases (extra ``wandb``)."""

    def __init__(self, folder: Path, name: str, start: int):
        try:
            wandb = import_module("wandb")
        except ImportError as error:
            raise SettingsError("--log wandb needs the package wandb: pip install wandb.") from error
        # A resumed training goes on in its own run; that of another folder is another run.
        place = folder / f"{name}.wandb-id"
        if not place.exists():
            place.write_text(secrets.token_hex(8), encoding="utf-8")
        self._run = wandb.init(
            project="tcl-annotate",
            name=f"{folder.resolve().name}/{name}",
            id=place.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
        )

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Send everything."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


LOGGERS: dict[str, Callable[[Path, str, int], Logger]] = {"tensorboard": TensorBoard, "wandb": Wandb}
"""Beside the file that is always written, by the name that the command line knows."""


class _Several:
    def __init__(self, loggers: Sequence[Logger]):
        self._loggers = loggers

    def write(self, step: int, values: dict[str, Any]) -> None:
        for logger in self._loggers:
            logger.write(step, values)

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()


def make_logger(folder: Path, name: str, start: int, extra: Sequence[str] = ()) -> Logger:
    """The loggers of a phase.

    Args:
        folder: of the run.
        name: of the phase.
        start: step that it starts from.
        extra: keys of `LOGGERS`.

    Raises:
        SettingsError: a package is not installed.
    """
    loggers: list[Logger] = [JsonLines(folder / f"{name}.jsonl", start)]
    loggers += [LOGGERS[key](folder, name, start) for key in extra]
    return _Several(loggers)
