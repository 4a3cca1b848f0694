"""Checkpoints that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from tcl_core.errors import SettingsError, is_full, reason_of, remedy_of

__all__ = ["CheckpointError", "difference", "load_checkpoint", "save_checkpoint"]


class CheckpointError(SettingsError):
    """A checkpoint that cannot be written or read; the one before it is untouched."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; it takes the place of an older one only when it is complete on the disk.

    Raises:
        CheckpointError: it cannot be written.
    """
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its writer, whose cause is lost.
        cause = error if isinstance(error, OSError) else _full_disk(error)
        if cause is None:
            raise
        part.unlink(missing_ok=True)
        remedy = remedy_of(cause) if is_full(cause) else "choose another folder"
        kept = "the previous checkpoint is intact" if path.exists() else "there is no previous checkpoint"
        raise CheckpointError(
            f"{path}: cannot be written: {reason_of(cause)}; {kept}; {remedy} and run the command again"
        ) from error


def _full_disk(error: RuntimeError) -> OSError | None:
    context: BaseException | None = error
    while context is not None:
        if isinstance(context, OSError):
            return context
        context = context.__cause__ or context.__context__
    return OSError(28, os.strerror(28)) if "PytorchStreamWriter" in str(error) else None


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint; ``None`` if there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason_of(error)}; delete it to start over") from error
    except Exception as error:
        raise CheckpointError(f"{path}: is damaged or incomplete; delete it to start over") from error
    if not isinstance(content, dict) or content.get("format") != 1:
        raise CheckpointError(f"{path}: is not a checkpoint of this version; delete it to start over")
    return content


def difference(what: str, before: str, now: str) -> str:
    """The first thing in which two descriptions differ.

    Args:
        what: ``data``, whose descriptions are compared as they are, or ``recipe``, whose are JSON.
        before: of the checkpoint.
        now: of this run.

    Example:
        >>> difference("recipe", '{"phase": {"batch": 8}}', '{"phase": {"batch": 4}}')
        'phase.batch 8, now 4'
        >>> difference("recipe", '{"phase": {}}', '{"phase": {"start": null}}')
        'phase.start not set, now None'
    """
    if what == "data":
        return f"data {before}, now {now}"
    old, new = _flat(json.loads(before)), _flat(json.loads(now))
    # A setting that another version of the program did not have is a difference, even where it is null now.
    for name in sorted(old.keys() | new.keys()):
        one, other = old.get(name, "not set"), new.get(name, "not set")
        if one != other:
            return f"{name} {one}, now {other}"
    return f"{before}, now {now}"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, part in items:
        found |= _flat(part, f"{prefix}.{key}".lstrip("."))
    return found
