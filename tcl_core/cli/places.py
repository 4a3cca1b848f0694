"""Places that commands write to and read from: judged before any work, with a sentence for each way to be wrong."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from tcl_core.errors import SettingsError, is_full, reason_of

__all__ = ["check_holds_nothing", "INPUT_PATH", "OUTPUT_PATH", "check_file", "check_folder", "check_outputs"]


class _Place(click.Path):
    """A path that is not empty, as an unset variable of the shell would make it."""

    def __init__(self, output: bool) -> None:
        super().__init__(path_type=Path)
        self._output = output

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        Raises:
            SettingsError: it is empty, or standard output.
        """
        option = "the path" if param is None else param.opts[0] if param.param_type_name == "option" else param.name
        if value == "":
            raise SettingsError(
                f"{option}: the path is empty; name a file or folder (is a variable of the shell unset?)"
            )
        if self._output and value == "-":
            raise SettingsError(
                f"{option} -: results are not written to standard output, from which no stopped run could go on; "
                "name a file, such as labels.json, and read that (./- for a file that is really called so)"
            )
        return super().convert(value, param, ctx)


INPUT_PATH = _Place(output=False)
"""Type of an option or argument that is read."""
OUTPUT_PATH = _Place(output=True)
"""Type of an option that is written."""


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path | str | None], replace: bool) -> None:
    """See to it, before any work, that outputs can be written and land on nothing that the user wants to keep.

    Args:
        outputs: files to write, by their options.
        inputs: images, label file and model that are read; what does not exist is passed over.
        replace: whether outputs that exist may be replaced; an input never is.

    Raises:
        SettingsError: if an output is a folder, in no folder, an input, the same as another, or exists.
    """
    given = {option: path for option, path in outputs.items() if path is not None}
    read = {os.path.realpath(path): path for path in inputs if path is not None and os.path.exists(path)}
    taken: dict[str, str] = {}
    for option, path in given.items():
        check_file(option, path)
        place = os.path.realpath(path)
        if place in read:
            raise SettingsError(f"{option} {path}: is an input of this command; name another file")
        if place in taken:
            raise SettingsError(f"{option} {path}: is the same file as {taken[place]}; name another")
        if path.exists() and not replace:
            raise SettingsError(f"{option} {path}: is there already; add --overwrite, or name another file")
        taken[place] = option


def check_file(
    option: str, path: Path, *, suffix: str = "", make_folders: bool = False, folder_is_fine: bool = False
) -> None:
    """Refuse a path that no file can be written to.

    Args:
        option: begins the message.
        path: the file to be; it may exist.
        suffix: is appended to the name for a helping file.
        make_folders: folders that are missing will be made.
        folder_is_fine: a folder may be there, because that is what will be written.

    Raises:
        SettingsError: it is a folder or a device, its name is too long, or its folder cannot be written to.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise SettingsError(f"{option} {path}: cannot be used ({reason_of(error)}); name another file") from error
    else:
        if stat.S_ISDIR(found.st_mode) and not folder_is_fine:
            raise SettingsError(f"{option} {path}: is a folder; name a file")
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise SettingsError(f"{option} {path}: is not a regular file; name another")
    try:
        os.lstat(path.with_name(path.name + suffix))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise SettingsError(
                f"{option} {path}: {path.name + suffix!r} cannot be made beside it ({reason_of(error)}); "
                "name another file"
            ) from error
    folder = path.absolute().parent
    while make_folders and not os.path.lexists(folder):
        folder = folder.parent
    check_folder(option, folder)


def check_folder(option: str, folder: Path) -> None:
    """Refuse a folder that is missing or cannot be written to.

    Raises:
        SettingsError: with the option's name.
    """
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise SettingsError(f"{option}: {folder} is not a folder; name another place")
        raise SettingsError(f"{option}: there is no folder {folder}; make it, or name another")
    try:
        # Only trying tells, for the superuser and on file systems that allow no writing at all.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        remedy = "name another"
        if is_full(error):
            remedy = "free some space, or name another"
        elif error.errno in (errno.EACCES, errno.EPERM):
            remedy = "change its permissions, or name another"
        raise SettingsError(
            f"{option}: the folder {folder} cannot be written to ({reason_of(error)}); {remedy}"
        ) from error


def check_holds_nothing(option: str, folder: Path, inputs: Iterable[Path | str | None]) -> None:
    """Refuse a folder to write that is, or holds, something that is read.

    Raises:
        SettingsError: with the option's name.
    """
    place = os.path.realpath(folder)
    for path in inputs:
        if path is not None and os.path.commonpath([place, real := os.path.realpath(path)]) == place:
            raise SettingsError(f"{option} {folder}: holds {real}, an input of this command; name another folder")
