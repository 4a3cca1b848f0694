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
            raise SettingsError(f"{option}: the path is empty; give a file or folder (is a shell variable unset?)")
        if self._output and value == "-":
            raise SettingsError(
                f"{option} -: results are not written to standard output, because a stopped run could not resume; "
                "give a file name such as labels.json (./- for a file that is really named -)"
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
            raise SettingsError(f"{option} {path}: is an input of this command; choose another file")
        if place in taken:
            raise SettingsError(f"{option} {path}: is the same file as {taken[place]}; choose another name")
        if path.exists() and not replace:
            raise SettingsError(f"{option} {path}: already exists; add --overwrite, or choose another file")
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
            raise SettingsError(f"{option} {path}: cannot be used ({reason_of(error)}); choose another file") from error
    else:
        if stat.S_ISDIR(found.st_mode) and not folder_is_fine:
            raise SettingsError(f"{option} {path}: is a folder; give a file name")
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise SettingsError(f"{option} {path}: is not a regular file; choose another")
    try:
        os.lstat(path.with_name(path.name + suffix))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise SettingsError(
                f"{option} {path}: {path.name + suffix!r} cannot be created next to it ({reason_of(error)}); "
                "choose another file"
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
            raise SettingsError(f"{option}: {folder} is not a folder; choose another path")
        raise SettingsError(f"{option}: the folder {folder} does not exist; create it, or choose another")
    try:
        # Only trying tells, for the superuser and on file systems that allow no writing at all.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        remedy = "choose another"
        if is_full(error):
            remedy = "free some space, or choose another"
        elif error.errno in (errno.EACCES, errno.EPERM):
            remedy = "change its permissions, or choose another"
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
            raise SettingsError(f"{option} {folder}: contains {real}, an input of this command; choose another folder")
