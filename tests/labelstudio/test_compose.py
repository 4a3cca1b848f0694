"""The compose file says nothing that Docker Compose, Label Studio or our command line does not know."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from labelstudio_backend.cli.serve import command as serve
from labelstudio_backend.settings import read_settings_file, settings_from
from tests.labelstudio.live.environment import REPOSITORY, VERSION, server_variables

FOLDER = REPOSITORY / "labelstudio_backend"
# Of the compose specification, as far as the file may need them.
SERVICE_KEYS = {
    "command",
    "depends_on",
    "environment",
    "expose",
    "healthcheck",
    "image",
    "ports",
    "restart",
    "volumes",
    "working_dir",
}
HEALTHCHECK_KEYS = {"disable", "interval", "retries", "start_interval", "start_period", "test", "timeout"}
DURATION = re.compile(r"(\d+h)?(\d+m)?(\d+s)?")
PORT = re.compile(r"(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}:)?\d+:\d+")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "docker-compose.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def serve_words(compose: dict[str, Any]) -> list[str]:
    """Arguments of ``serve`` in the backend's shell command."""
    shell, option, text = compose["services"]["backend"]["command"]
    assert (shell, option) == ("sh", "-c")
    words = shlex.split(text.rpartition("&&")[2])
    assert words[:4] == ["exec", "tcl-annotate", "label-studio", "serve"]
    return words[4:]


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Source of each mount, by its place in the container."""
    found = {}
    for mount in service["volumes"]:
        source, target, *mode = mount.split(":")
        assert target.startswith("/") and mode in ([], ["ro"], ["rw"])
        found[target] = source
    return found


def test_keys_and_references(compose: dict[str, Any]) -> None:
    assert compose.keys() == {"services", "volumes"}
    used = set()
    for service in compose["services"].values():
        assert service.keys() <= SERVICE_KEYS
        assert all(isinstance(value, str) for value in service["environment"].values())
        assert set(service.get("depends_on", [])) <= compose["services"].keys()
        assert all(PORT.fullmatch(port) for port in service.get("ports", []))
        assert all(port.isdigit() for port in service.get("expose", []))
        for source in mounts(service).values():
            if source.startswith("."):
                assert source == "./files" or (FOLDER / source).resolve() == REPOSITORY
            else:
                used.add(source)
        check = service.get("healthcheck", {"test": ["CMD", "true"]})
        assert check.keys() <= HEALTHCHECK_KEYS and check["test"][0] in ("CMD", "CMD-SHELL")
        for name in ("interval", "timeout", "start_period"):
            assert DURATION.fullmatch(check.get(name, "1s"))
    assert used == compose["volumes"].keys()


def test_label_studio_is_the_one_that_is_tested(compose: dict[str, Any]) -> None:
    service = compose["services"]["label-studio"]
    assert service["image"] == f"heartexlabs/label-studio:{VERSION}"
    tested = server_variables(Path("data"), Path("files"), "http://127.0.0.1:8080")
    assert service["environment"].keys() <= tested.keys()
    # Without this one every request to the backend is refused.
    assert service["environment"]["USE_DEFAULT_BANNED_SUBNETS"] == tested["USE_DEFAULT_BANNED_SUBNETS"]
    assert service["environment"]["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"] in mounts(service)


def test_the_backend_is_started_with_options_that_exist(compose: dict[str, Any], serve_words: list[str]) -> None:
    service = compose["services"]["backend"]
    options = serve.make_context("serve", list(serve_words)).params
    assert options["host"] == "0.0.0.0" and [str(options["port"])] == service["expose"]
    assert f":{options['port']}/health" in service["healthcheck"]["test"][-1]
    assert {str(options["local_root"]), str(options["state_dir"])} <= mounts(service).keys()
    assert mounts(service)["/files"] == mounts(compose["services"]["label-studio"])["/label-studio/files"]
    assert service["environment"].keys() == {"LABEL_STUDIO_TOKEN"}


def test_the_backend_is_installed_from_what_is_mounted(compose: dict[str, Any]) -> None:
    service = compose["services"]["backend"]
    install = shlex.split(service["command"][2].partition("&&")[0])
    assert install[:2] == ["pip", "install"]
    (package,) = [word for word in install if word.startswith(service["working_dir"])]
    folder, _, extra = package.partition("[")
    assert mounts(service)[folder] == ".."
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extra.rstrip("]") in project["optional-dependencies"]
    assert (REPOSITORY / install[install.index("--constraint") + 1]).is_file()
    python = re.fullmatch(r"python:(\d+)\.(\d+)-slim", service["image"])
    assert python and (int(python[1]), int(python[2])) >= (3, 11)


def test_the_backend_reaches_label_studio_by_its_service_name(compose: dict[str, Any], serve_words: list[str]) -> None:
    inside = Path(serve_words[serve_words.index("--config") + 1])
    file = REPOSITORY / inside.relative_to(compose["services"]["backend"]["working_dir"])
    settings = settings_from(read_settings_file(file), {}, {})
    assert settings.images.label_studio_url == "http://label-studio:8080"
    label_studio = compose["services"]["label-studio"]
    assert settings.images.label_studio_aliases == (label_studio["environment"]["LABEL_STUDIO_HOST"],)
    assert label_studio["ports"][0].endswith(":8080")
