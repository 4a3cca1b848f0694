"""The compose file says nothing that Docker Compose, Label Studio or our command line does not know."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from labelstudio_backend.cli.compose import FILES
from labelstudio_backend.cli.serve import command as serve
from labelstudio_backend.settings import settings_from, settings_from_environment
from tcl_core.cli.main import run
from tests.labelstudio.live.environment import REPOSITORY, VERSION, server_variables

FOLDER = REPOSITORY / "labelstudio_backend" / "container"
# Of the compose specification, as far as the file may need them.
SERVICE_KEYS = {
    "build",
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
                assert source == "./files"
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


def test_the_backend_is_set_up_with_variables_that_exist(compose: dict[str, Any]) -> None:
    service, docker = compose["services"]["backend"], dockerfile()
    variables = {**docker_variables(docker), **service["environment"]}
    prefix = serve.context_settings["auto_envvar_prefix"]
    options = {f"{prefix}_{parameter.name}".upper() for parameter in serve.params}
    for name in variables:
        if not name.startswith(f"{prefix}__"):
            assert name in {*options, "LABEL_STUDIO_TOKEN", "TCL_ANNOTATE_HOME"}, name
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"{prefix}_HOST", variables[f"{prefix}_HOST"])
        assert serve.make_context("serve", []).params["host"] == "0.0.0.0"
    settings = settings_from(settings_from_environment(variables), {}, {})
    assert settings.images.label_studio_aliases == ("http://localhost:8080",)
    label_studio = compose["services"]["label-studio"]
    assert label_studio["environment"]["LABEL_STUDIO_HOST"] in settings.images.label_studio_aliases
    assert variables[f"{prefix}_URL"] == "http://label-studio:8080" and label_studio["ports"][0].endswith(":8080")
    assert {variables[f"{prefix}_LOCAL_ROOT"], variables[f"{prefix}_STATE_DIR"]} <= mounts(service).keys()
    assert mounts(service)["/files"] == mounts(label_studio)["/label-studio/files"]


def test_the_image_is_built_from_what_the_dockerfile_takes(compose: dict[str, Any]) -> None:
    text = dockerfile()
    build = compose["services"]["backend"]["build"]
    defaults = dict(re.findall(r"^ARG (\w+)=(.+)$", text, re.MULTILINE))
    assert build["context"] == "." and build["args"].keys() == defaults.keys()
    for name, written in build["args"].items():
        assert re.fullmatch(r"\$\{\w+:-(.+)\}", written)[1] == defaults[name]  # type: ignore[index]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, _, extra = defaults["PACKAGE"].partition("[")
    assert name == project["name"] and extra.rstrip("]") in project["optional-dependencies"]
    python = re.search(r"^FROM python:(\d+)\.(\d+)-slim$", text, re.MULTILINE)
    assert python and (int(python[1]), int(python[2])) >= (3, 11)
    (words,) = re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)
    assert json.loads(words) == ["tcl-annotate", "label-studio", "serve"]
    (port,) = re.findall(r"^EXPOSE (\d+)$", text, re.MULTILINE)
    assert int(port) == serve.make_context("serve", []).params["port"]
    assert [port] == compose["services"]["backend"]["expose"] and f":{port}/health" in text
    # Whoever gets into the container is nobody there.
    assert text.index("\nUSER ") < text.index("\nENTRYPOINT ")


def test_the_files_come_with_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "here"
    assert run(["label-studio", "compose", "--out", str(out)]) == 0
    for name in FILES:
        assert (out / name).read_text() == (FOLDER / name).read_text()
    assert run(["label-studio", "compose", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(["label-studio", "compose", "--out", str(out), "--overwrite"]) == 0


def dockerfile() -> str:
    return (FOLDER / "Dockerfile").read_text(encoding="utf-8")


def docker_variables(text: str) -> dict[str, str]:
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    return dict(word.split("=", 1) for word in block.replace("\\\n", " ").split())
