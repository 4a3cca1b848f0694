"""Run the steps of the backend's Dockerfile where there is no Docker: in a bare Debian, as root, on Linux.

    python -m tests.labelstudio.bare_root /tmp/root --wheel dist/tcl_annotate-0.1.0-py3-none-any.whl

Every instruction of the Dockerfile that ``tcl-annotate label-studio compose`` writes is followed inside the new root.
Then its entry point runs with the variables of the compose file, as the Dockerfile's user and as the first process,
until the health check succeeds, and is stopped as ``docker stop`` does it. What differs from Docker: the base image is
Debian's own Python of the same version, in an environment at ``/usr/local`` where the official image has its build;
there are no layers, volumes are folders, the steps use this machine's network, and the entry point has none.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tcl_core.cli.main import run as tcl_annotate
from tests.labelstudio.container import (
    HealthCheck,
    compose_service,
    expanded,
    health_check,
    instructions,
    pairs,
    words_of,
)

__all__ = ["Image", "StepError", "follow", "main"]

SUITE, SUITE_PYTHON = "bookworm", "3.11"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = "ca-certificates,netbase,tzdata,python3,python3-venv"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = ("debootstrap", "unshare", "nsenter", "chroot", "mount", "ip")
STOP_SECONDS = 10
"""How long ``docker stop`` waits."""


class StepError(Exception):
    """A step of the Dockerfile fails, or cannot be followed here."""


@dataclass
class Image:
    """What the instructions so far have made.

    Attributes:
        root: folder of its files.
        environment: variables of ``ENV``.
        arguments: variables of ``ARG``.
        user: name or number.
        folder: where commands run.
        entrypoint: the program that a container runs.
        command: what ``CMD`` adds to it.
        health: how to ask whether it is well.
        ports: what it listens on.
    """

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: HealthCheck | None = None
    ports: list[int] = field(default_factory=list)

    @property
    def account(self) -> tuple[str, str, str]:
        """Number, group and home of the user, as the image's own list has them."""
        for line in (self.root / "etc/passwd").read_text(encoding="utf-8").splitlines():
            name, _, number, group, _, home, _ = line.split(":")
            if self.user in (name, number):
                return number, group, home
        raise StepError(f"USER {self.user}: there is no such user in the image")

    def inner(self, path: str) -> Path:
        """Where a path of the image lies."""
        return self.root / path.lstrip("/")

    def chrooted(self, command: Sequence[str], variables: Mapping[str, str]) -> list[str]:
        """A command line that runs a command in the root, as the user and in the folder of the image."""
        number, group, home = self.account
        everything = {"HOME": home, **self.environment, **variables}
        return [
            *("chroot", f"--userspec=+{number}:+{group}", f"--groups=+{group}", str(self.root)),
            *("/usr/bin/env", "--ignore-environment", f"--chdir={self.folder}"),
            *(f"{name}={value}" for name, value in everything.items()),
            *command,
        ]

    def words(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        mounts: Mapping[str, Path] | None = None,
        network: bool = True,
    ) -> list[str]:
        """The same as the first of its own processes, and with mounts that end with it.

        Args:
            command: what runs.
            variables: of its environment, beside those of the image.
            mounts: folders of this machine that it may read, by their place in the image.
            network: whether it has this machine's network, and not only a loopback of its own.
        """
        script = ["set -e", 'mount -t proc proc "$0/proc"', 'mount --rbind /dev "$0/dev"']
        for target, source in (mounts or {}).items():
            script.append(f"mount --bind -o ro {shlex.quote(str(source))} {shlex.quote(str(self.inner(target)))}")
        if not network:
            script.append("ip link set lo up")
        script.append('exec "$@"')
        return [
            *("unshare", "--mount", "--pid", *(() if network else ("--net",)), "--fork", "--kill-child=SIGKILL"),
            *("sh", "-c", "\n".join(script), str(self.root), *self.chrooted(command, variables)),
        ]


def follow(text: str, image: Image, context: Path, arguments: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Follow a Dockerfile, one step after the other.

    Args:
        text: the Dockerfile.
        image: what it makes.
        context: folder that ``COPY`` takes files from.
        arguments: build arguments, in place of the defaults of ``ARG``.

    Yields:
        Each instruction with what it was given, after it was followed.

    Raises:
        StepError: one fails, or is none of those that are known here.
    """
    if unknown := sorted(
        set(arguments) - {name for kind, value in instructions(text) if kind == "ARG" for name in pairs(value)}
    ):
        raise StepError(f"build argument {unknown[0]}: the Dockerfile has no such ARG")
    for kind, value in instructions(text):
        known = {**image.arguments, **image.environment}
        match kind:
            case "FROM":
                if not re.fullmatch(rf"python:{re.escape(SUITE_PYTHON)}-slim(-\w+)?", value):
                    raise StepError(f"FROM {value}: only python:{SUITE_PYTHON}-slim can be approximated with {SUITE}")
            case "ARG":
                image.arguments |= {name: arguments.get(name, default) for name, default in pairs(value).items()}
            case "ENV":
                image.environment |= pairs(expanded(value, known))
            case "RUN":
                if value.startswith(("--", "[")):
                    raise StepError(f"RUN {value}: only lines for the shell are followed here")
                done = subprocess.run(image.words(["/bin/sh", "-c", value], image.arguments)).returncode
                if done != 0:
                    raise StepError(f"RUN {value}: ended with {done}")
            case "COPY":
                copy(shlex.split(expanded(value, known)), image, context)
            case "USER":
                image.user = expanded(value, known)
                _ = image.account
            case "WORKDIR":
                image.folder = str(PurePosixPath(image.folder) / expanded(value, known))
                image.inner(image.folder).mkdir(parents=True, exist_ok=True)
            case "VOLUME":
                for folder in shlex.split(expanded(value, known)):
                    image.inner(folder).mkdir(parents=True, exist_ok=True)
            case "EXPOSE":
                image.ports += [int(port) for port in expanded(value, known).split()]
            case "HEALTHCHECK":
                image.health = health_check(value)
            case "ENTRYPOINT":
                image.entrypoint, image.command = words_of(value), []
            case "CMD":
                image.command = words_of(value)
            case "LABEL":
                pass
            case _:
                raise StepError(f"{kind}: this instruction is not followed here")
        yield kind, value


def copy(words: Sequence[str], image: Image, context: Path) -> None:
    """What ``COPY`` does with files and folders of the context; they belong to root."""
    *sources, target = words
    if not sources or any(word.startswith("--") for word in sources):
        raise StepError(f"COPY {shlex.join(words)}: options are not followed here")
    into = image.inner(str(PurePosixPath(image.folder) / target))
    for source in sources:
        found = sorted(context.glob(source))
        if not found:
            raise StepError(f"COPY {shlex.join(words)}: {source} is not in the context")
        for path in found:
            if path.is_dir():
                shutil.copytree(path, into, dirs_exist_ok=True)
            elif target.endswith("/") or len(sources) + len(found) > 2:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, into)
            else:
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, into)


def make_base(root: Path, mirror: str, files: Sequence[Path]) -> Image:
    """A minimal Debian with Python in ``/usr/local``, in place of the official image.

    Args:
        root: an empty folder, or none yet.
        mirror: where Debian's packages come from.
        files: files of this machine that are wanted in it.
    """
    steps = [
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root), mirror],
        ["chroot", str(root), "python3", "-m", "venv", "/usr/local"],
    ]
    for step in steps:
        done = subprocess.run(step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        if done.returncode != 0:
            raise StepError(f"{step[0]}: ended with {done.returncode}: {done.stdout.strip()[-500:]}")
    image = Image(root)
    # As Docker does.
    shutil.copy("/etc/resolv.conf", image.inner("/etc/resolv.conf"))
    image.inner("/etc/hosts").write_text("127.0.0.1 localhost\n", encoding="utf-8")
    for file in files:
        image.inner(str(file)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, image.inner(str(file)))
    return image


@contextmanager
def container(image: Image, service: Mapping[str, Any], context: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The entry point, running with what the compose file says; gives its process and that of the first one inside."""
    mounts = {}
    for mount in service["volumes"]:
        source, target, *_ = mount.split(":")
        if source.startswith("."):
            mounts[target] = context / source
            image.inner(target).mkdir(parents=True, exist_ok=True)
    words = image.words([*image.entrypoint, *image.command], service["environment"], mounts, network=False)
    process = subprocess.Popen(words, start_new_session=True)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (found := children.read_text().split()) and process.poll() is None:
            time.sleep(0.05)
        if not found:
            raise StepError(f"ENTRYPOINT: ended with {process.poll()}")
        yield process, int(found[0])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_until_healthy(
    image: Image, environment: Mapping[str, str], process: subprocess.Popen[bytes], first: int
) -> float:
    """Ask as Docker would, but more often; gives the seconds until it was well.

    Raises:
        StepError: it ended, or was not well in the time that the health check leaves.
    """
    if image.health is None:
        raise StepError("HEALTHCHECK: there is none")
    words = [
        "nsenter",
        f"--target={first}",
        "--mount",
        "--pid",
        "--net",
        *image.chrooted(image.health.words, environment),
    ]
    start = time.monotonic()
    last = ""
    while (
        passed := time.monotonic() - start
    ) < image.health.start_period + image.health.interval * image.health.retries:
        if process.poll() is not None:
            raise StepError(f"ENTRYPOINT: ended with {process.returncode} before it was healthy")
        try:
            done = subprocess.run(words, timeout=image.health.timeout, capture_output=True, encoding="utf-8")
        except subprocess.TimeoutExpired:
            last = "no answer in time"
            continue
        if done.returncode == 0:
            return time.monotonic() - start
        last = done.stderr.strip()[-300:]
        time.sleep(1)
    raise StepError(f"HEALTHCHECK: not healthy after {passed:.0f} s: {last}")


def user_of(process: int) -> int:
    """The number of the user that a process runs as."""
    (line,) = re.findall(r"^Uid:\t(\d+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return int(line)


def check(root: Path, wheel: Path, variables: Mapping[str, str], files: Sequence[Path], mirror: str) -> None:
    """Everything from the bare root to a backend that was well and has stopped; says what it does.

    Raises:
        StepError: a step fails.
    """
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:6.0f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        if tcl_annotate(["label-studio", "compose", "--out", str(context)]) != 0:
            raise StepError("compose: failed")
        shutil.copy(wheel, context / "wheels")
        service = compose_service(context / "docker-compose.yml", "backend", variables)
        image = make_base(root, mirror, files)
        say(f"a bare {SUITE} with Python {SUITE_PYTHON} in {root}")
        for kind, value in follow(
            (context / "Dockerfile").read_text(encoding="utf-8"), image, context, service["build"]["args"]
        ):
            say(f"{kind} {' '.join(value.split())}")
        with container(image, service, context) as (process, first):
            seconds = wait_until_healthy(image, service["environment"], process, first)
            say(f"healthy {seconds:.0f} s after its start, as user {user_of(first)}")
            if user_of(first) == 0:
                raise StepError("USER: the backend runs as root")
            os.kill(first, signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                raise StepError(f"the backend was told to stop, and was there {STOP_SECONDS} s later") from None
            say("stopped when it was told to")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="absolute path of a folder that is empty or not there yet")
    parser.add_argument("--wheel", type=Path, required=True, help="wheel of this package to install")
    parser.add_argument("--torch-index", metavar="URL", help="package index that PyTorch comes from")
    parser.add_argument("--mirror", default=MIRROR, metavar="URL", help="where Debian's packages come from")
    parser.add_argument(
        "--file",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="file of this machine to have in the root",
    )
    given = parser.parse_args(arguments)
    if not given.root.is_absolute() or (given.root.exists() and any(given.root.iterdir())):
        parser.error(f"{given.root}: give the absolute path of a folder that is empty or not there yet")
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        parser.error(f"{', '.join(missing)} is not installed")
    if os.geteuid() != 0:
        parser.error("this must run as root")
    if absent := [path for path in (given.wheel, *given.file) if not path.is_file()]:
        parser.error(f"{absent[0]}: there is no such file")
    variables = {"TORCH_INDEX": given.torch_index} if given.torch_index else {}
    try:
        check(given.root, given.wheel, variables, given.file, given.mirror)
    except StepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
