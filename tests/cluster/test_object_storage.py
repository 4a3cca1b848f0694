"""Images in object storage: the same file as from a folder, and one sentence for what can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tcl_core.cli.main import run
from tcl_core.errors import SettingsError
from tcl_core.jobs.remote_inputs import find_job_images
from tests.cluster.environment import run_python
from tests.core.test_prelabel import save_image
from tests.labelstudio.live.s3 import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("object storage")]

LABELS = ["--label", "Cat=cat,dog", "--label", "Sofa=sofa,red couch", "--label", "Tree=tree"]
SECRET = "wJalrXUtnFEMIsecret"
S3_KEYS = {"AWS_ACCESS_KEY_ID": "AKIAtest", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
# As a walk through the folder has them.
WALKED = ("a.png", "b.png", "deep/10.png", "deep/9.png", "z/broken.jpg", "z/c d.png", "z/ä/猫.png")
NAMES = ("b.png", "a.png", "z/c d.png", "z/ä/猫.png", "deep/9.png", "deep/10.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here") / "photos"
    for number, name in enumerate(NAMES):
        save_image(folder / name, number)
    (folder / "z" / "broken.jpg").write_text("I am no image")
    (folder / "notes.txt").write_text("nor am I")
    save_image(folder / ".hidden.png")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def fast(tiny_model_path: Path) -> list[str]:
    return ["--model", str(tiny_model_path), "--device", "cpu", "--no-refine", "--workers", "0"]


@pytest.fixture(scope="module")
def local(photos: Path, fast: list[str]) -> Path:
    """What one process makes of the folder."""
    out = photos.parent / "local.json"
    assert run(["prelabel", str(photos), *LABELS, *fast, "--out", str(out)]) == 1
    return out


@pytest.fixture(scope="module")
def bucket(s3: S3Server, photos: Path) -> str:
    for name, content in files_of(photos).items():
        s3.put("photos", f"2026/{name}", content)
    return "s3://photos/2026"


def prelabel(python: Path, folder: Path, words: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    done = run_python(python, ["-m", "tcl_core.cli", "prelabel", *words], folder, **variables)
    assert "Traceback" not in done.stderr and SECRET not in done.stdout + done.stderr, done.stderr
    return done


def test_a_bucket_gives_the_bytes_of_a_folder_and_resumes(
    tmp_path: Path, python: Path, s3: S3Server, bucket: str, local: Path, photos: Path, fast: list[str]
) -> None:
    words = [bucket, *LABELS, *fast, "--out", "out.json"]
    variables = {**S3_KEYS, "AWS_ENDPOINT_URL": s3.url}
    done = prelabel(python, tmp_path, words, **variables)
    assert done.returncode == 1, done.stderr
    assert "skipped: z/broken.jpg: " in done.stderr
    assert "1 file left out: .txt" in done.stderr
    assert (tmp_path / "out.json").read_bytes() == local.read_bytes()
    assert not any(SECRET.encode() in content for content in files_of(tmp_path).values())
    # Two workers read ahead, and one object has changed since.
    shutil.copytree(photos, tmp_path / "photos")
    save_image(tmp_path / "photos" / "b.png", 77)
    s3.put("changed", "b.png", (tmp_path / "photos" / "b.png").read_bytes())
    for name in ("a.png", "z/c d.png"):
        s3.put("changed", name, (photos / name).read_bytes())
    few = ["s3://changed", *LABELS, *fast[:-1], "2", "--out", "few.json"]
    assert prelabel(python, tmp_path, few, **variables).returncode == 0
    save_image(tmp_path / "photos" / "a.png", 78)
    s3.put("changed", "a.png", (tmp_path / "photos" / "a.png").read_bytes())
    again = prelabel(python, tmp_path, [*few, "--resume"], **variables)
    assert "1 of them have changed" in again.stderr, again.stderr
    (tmp_path / "photos" / "z" / "broken.jpg").unlink()
    shutil.rmtree(tmp_path / "photos" / "deep")
    shutil.rmtree(tmp_path / "photos" / "z" / "ä")
    assert run(["prelabel", str(tmp_path / "photos"), *LABELS, *fast, "--out", str(tmp_path / "same.json")]) == 0
    assert (tmp_path / "few.json").read_bytes() == (tmp_path / "same.json").read_bytes()


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["s3://photos"], [f"2026/{name}" for name in WALKED]),
        (["s3://photos/2026/z/"], ["broken.jpg", "c d.png", "ä/猫.png"]),
        (["s3://photos/2026/b.png"], ["b.png"]),
        (["s3://photos/2026/notes.txt", "s3://photos/2026/z/*.png"], ["notes.txt", "z/c d.png"]),
        (["s3://photos/2026/**/*.png", "s3://photos/2026/b.png"], [name for name in WALKED if name[-3:] == "png"]),
        (["s3://photos/2026/b.png", "--root", "s3://photos"], ["2026/b.png"]),
    ],
)
def test_prefixes_objects_and_patterns(
    tmp_path: Path, python: Path, s3: S3Server, bucket: str, inputs: list[str], names: list[str]
) -> None:
    code = (
        "import json, sys; from tcl_core.jobs.remote_inputs import find_job_images\n"
        "inputs, root = (sys.argv[1:-2], sys.argv[-1]) if '--root' in sys.argv else (sys.argv[1:], None)\n"
        "print(json.dumps(find_job_images(inputs, root).file_names))"
    )
    done = run_python(python, ["-c", code, *inputs], tmp_path, **S3_KEYS, AWS_ENDPOINT_URL=s3.url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == names


@pytest.mark.parametrize(
    ("address", "variables", "message"),
    [
        ("s3://nowhere/x", S3_KEYS, "s3://nowhere/x: there is no"),
        ("s3://photos/none", S3_KEYS, "s3://photos/none: there is no"),
        ("s3://photos", {}, "s3://photos: this machine has no credentials"),
        (f"s3://AKIA:{SECRET}@photos/x", S3_KEYS, "s3://...: an address must not contain credentials"),
        ("s3://", S3_KEYS, "names no bucket"),
        ("s3://*/x.png", S3_KEYS, "the name of a bucket cannot be a pattern"),
        ("http://127.0.0.1/x.png", {}, "only s3:// and gs://"),
        ("s3://photos/2026/notes.tx?", S3_KEYS, "no images found"),
        ("s3://photos", {**S3_KEYS, "AWS_ENDPOINT_URL": f"http://user:{SECRET}@127.0.0.1:9"}, "cannot be read"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, python: Path, s3: S3Server, bucket: str, address: str, variables: dict[str, str], message: str
) -> None:
    words = [address, *LABELS, "--out", "out.json"]
    done = prelabel(python, tmp_path, words, **{"AWS_ENDPOINT_URL": s3.url, **variables}, AWS_MAX_ATTEMPTS="1")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not files_of(tmp_path)


def test_objects_that_vanish_or_are_too_large_cost_only_themselves(
    tmp_path: Path, python: Path, s3: S3Server, tiny_model_path: Path
) -> None:
    save_image(tmp_path / "here" / "a.png")
    s3.put("sizes", "a.png", (tmp_path / "here" / "a.png").read_bytes())
    # The header would pass; it is not fetched.
    s3.put("sizes", "large.png", bytes(2**26 + 8 * 3000 + 1))
    code = (
        "from pathlib import Path; from dataclasses import replace\n"
        "from tcl_core.images import RemoteFolder\n"
        "from tcl_core.jobs.stages import ImageToRead, ReadSettings, read_image\n"
        "for name in ('a.png', 'large.png', 'gone.png'):\n"
        "    read = read_image(ImageToRead(RemoteFolder('s3://sizes'), name), ReadSettings(64, 256, 3000))\n"
        "    print(name, read.failure and read.failure.reason, read.failure and read.failure.fatal)"
    )
    done = run_python(python, ["-c", code], tmp_path, **S3_KEYS, AWS_ENDPOINT_URL=s3.url)
    lines = done.stdout.splitlines()
    assert lines[0] == "a.png None None", done.stderr
    assert lines[1].startswith("large.png has 67,132,865 bytes, more than") and lines[1].endswith("False")
    assert lines[2] == "gone.png there is no such bucket or object; check the address and the region False"


def test_google_cloud_storage(tmp_path: Path, python: Path, gcs: str, photos: Path, fast: list[str]) -> None:
    few = tmp_path / "few"
    for name in ("a.png", "z/c d.png"):
        save_image(few / name, len(name))
        answer = httpx.post(
            f"{gcs}/upload/storage/v1/b/photos/o?uploadType=media&name={quote('2026/' + name, safe='')}",
            content=(few / name).read_bytes(),
            headers={"Content-Type": "image/png"},
            trust_env=False,
        )
        assert answer.is_success, answer.text
    assert run(["prelabel", str(few), *LABELS, *fast, "--out", str(tmp_path / "local.json")]) == 0
    # gcsfs would ask for the kind of the bucket in a protocol that the emulator does not speak, for a minute.
    variables = {"STORAGE_EMULATOR_HOST": gcs, "FSSPEC_GCS_TOKEN": "anon", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    words = ["gs://photos/2026", *LABELS, *fast, "--out", "out.json"]
    done = prelabel(python, tmp_path, words, **variables)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "local.json").read_bytes()
    missing = prelabel(python, tmp_path, ["gs://photos/none", *words[1:-1], "other.json"], **variables)
    assert missing.returncode == 2 and "gs://photos/none: there is no" in missing.stderr, missing.stderr


def test_addresses_are_refused_where_they_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_image(tmp_path / "a.png")
    with pytest.raises(SettingsError, match="object storage and files cannot be combined"):
        find_job_images(["s3://photos", str(tmp_path)])
    words = ["compare", "s3://photos/a.png", "--label", "a", "--model", "playground", "--model", "sclip:playground"]
    assert run([*words, "--preview", str(tmp_path / "p")]) == 2
    assert "only prelabel reads from object storage" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
