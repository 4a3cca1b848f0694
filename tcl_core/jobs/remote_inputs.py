"""The images of a job, on this machine or in object storage."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tcl_core.errors import SettingsError
from tcl_core.images import RemoteFolder, is_remote, is_supported
from tcl_core.images.remote import list_remote
from tcl_core.jobs.inputs import ImageList, find_images, left_out_message, no_images

__all__ = ["RemoteImages", "find_job_images"]


@dataclass(frozen=True)
class RemoteImages:
    """The images of a job in object storage, like `tcl_core.jobs.inputs.ImageList`.

    Attributes:
        root: bucket and prefix that the file names are relative to.
        file_names: one to an image, with ``/`` between the parts; none twice.
        left_out: how many objects are no images by their ending (lower case), the most frequent first.
    """

    root: RemoteFolder
    file_names: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.file_names)

    def local_paths(self) -> Iterator[Path]:
        """None: no output can replace an object."""
        return iter(())

    def left_out_message(self) -> str:
        """See `tcl_core.jobs.inputs.ImageList.left_out_message`."""
        return left_out_message(self.left_out)


def find_job_images(
    inputs: Sequence[str], root: str | None = None, exclude: Sequence[Path] = ()
) -> ImageList | RemoteImages:
    """`tcl_core.jobs.inputs.find_images`, which also takes addresses (``s3://bucket/prefix``, ``gs://...``).

    Args:
        inputs: what the user named, all paths or all addresses of one bucket.
        root: folder, or address, that file names are relative to; by default the deepest that holds all inputs.
        exclude: folders and files that are never taken from a folder.

    Raises:
        ImageError: there is nothing at an input, or no image in any of them.
        SettingsError: paths and addresses, or buckets, are mixed; an image lies outside ``root``; or ``root`` is empty
            or no folder.
    """
    if root == "":
        raise SettingsError("--root: the path is empty; give a folder (is a shell variable unset?)")
    # What is there under such a name is a file or folder.
    remote = [is_remote(one) and not os.path.lexists(one) for one in inputs]
    if not any(remote):
        return find_images(inputs, None if root is None else Path(root), exclude)
    if not all(remote):
        raise SettingsError(
            f"{inputs[remote.index(True)]} and {inputs[remote.index(False)]}: object storage and files cannot be "
            "combined; run the command once for each"
        )
    if root is not None and not is_remote(root):
        raise SettingsError(f"--root {root}: is no address; give a prefix of the inputs, such as {inputs[0]}")
    folder, names = list_remote(inputs, root)
    named = set(inputs)
    # As of files, what is named by itself is taken whatever it is called.
    images = tuple(name for name in names if is_supported(name) or f"{folder}/{name}" in named)
    others = set(names).difference(images)
    endings = dict(Counter(os.path.splitext(name)[1].lower() for name in others).most_common())
    if not images:
        raise no_images(inputs, endings)
    return RemoteImages(folder, images, endings)
