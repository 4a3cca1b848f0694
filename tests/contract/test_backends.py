"""Every backend gives what PyTorch gives, for every method that has a network, and fails in one sentence."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import tcl_core.backends.choice as choice_module
import tcl_core.models.loading as loading_module
from tcl_core.backends import BACKENDS, Backend, available_backends, make_backend, select_backend
from tcl_core.backends.base import CompiledBackend
from tcl_core.backends.calibration import Calibration
from tcl_core.backends.libraries import openvino_library
from tcl_core.backends.networks import NetworkStore
from tcl_core.backends.openvino import OpenVinoBackend
from tcl_core.errors import SettingsError
from tcl_core.methods import Method
from tcl_core.methods.capabilities import Exportable
from tcl_core.methods.tcl import TCL
from tcl_core.models import load_model
from tcl_core.segmentation.segmenter import Segmenter
from tests.contract.examples import example_image, example_windows, model_of, vocabulary_of
from tests.docs.pages import REPOSITORY
from tests.missing import missing

WITHOUT_NETWORK = {"groupvit", "scclip"}
"""Their encoders choose tokens by values, which a fixed network cannot."""


@pytest.fixture(scope="module")
def openvino() -> Any:
    if importlib.util.find_spec("openvino") is None:
        missing("the backend openvino needs openvino (pip install tcl-annotate[openvino])")
    return make_backend("openvino", None)


def test_methods_with_a_network(method: Method) -> None:
    assert isinstance(method, Exportable) == (method.name not in WITHOUT_NETWORK)
    for name in BACKENDS[:2]:
        backend = make_backend(name, None).for_method(method)
        assert backend.name == ("torch" if method.name in WITHOUT_NETWORK else name)


@pytest.mark.slow
def test_openvino_gives_the_same_features(method: Method, openvino: Backend) -> None:
    if not isinstance(method, Exportable):
        return
    windows = example_windows(2, (40, 50))
    expected = method.encode(windows)
    found = openvino.encoder(method, "", torch.float32)(windows)
    assert type(found) is type(expected) and found._numbers() == expected._numbers()
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(found.tensors()[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_quantized_network_gives_nearly_the_same_features(method: Method, openvino: Backend) -> None:
    if importlib.util.find_spec("nncf") is None:
        missing("precision int8 needs nncf (pip install tcl-annotate[int8])")
    if not isinstance(method, Exportable):
        return
    windows = example_windows(4, (40, 50))
    pixels = tuple(((windows * 0.2 + 0.5) * 255).clamp(0, 255).to(torch.uint8))
    backend = OpenVinoBackend(None, Calibration(pixels, (0.5,) * 3, (0.2,) * 3))
    expected = method.encode(windows)
    found = backend.encoder(method, "", torch.int8)(windows)
    assert type(found) is type(expected) and found._numbers() == expected._numbers()
    for name, tensor in expected.tensors().items():
        other = found.tensors()[name]
        assert other.shape == tensor.shape and other.dtype == tensor.dtype
        if not tensor.numel():
            continue
        assert not torch.equal(other, tensor)
        assert torch.nn.functional.cosine_similarity(other.flatten(), tensor.flatten(), dim=0) > 0.95, name


@pytest.mark.slow
def test_all_convolutions_are_quantized(openvino: Backend, tmp_path: Path) -> None:
    """Also those whose kernels are computed from the model's (up-sampling by two, then a kernel of 3)."""
    windows = example_windows(2, (64, 64))
    pixels = tuple(((windows * 0.2 + 0.5) * 255).clamp(0, 255).to(torch.uint8))
    backend = OpenVinoBackend(tmp_path, Calibration(pixels, (0.5,) * 3, (0.2,) * 3))
    backend.encoder(TCL.example(), "", torch.int8)(windows)
    (network,) = tmp_path.glob("*/network.xml")
    operations = openvino_library().Core().read_model(network).get_ops()
    kernels = [found.input_value(1).get_node() for found in operations if found.get_type_name() == "Convolution"]
    assert len(kernels) > 1
    for node in kernels:
        while node.get_type_name() != "Constant":
            node = node.input_value(0).get_node()
        assert node.get_element_type().get_type_name() == "i8"


@pytest.mark.parametrize("name", BACKENDS)
def test_int8_takes_openvino_and_a_calibration(name: str, tmp_path: Path, openvino: Backend) -> None:
    with pytest.raises(SettingsError, match="run 'tcl-annotate models quantize|use --backend openvino"):
        make_backend(name, tmp_path).encoder(TCL.example(), "", torch.int8)


def test_a_segmenter_says_what_runs_it_and_decides_the_same(openvino: Backend) -> None:
    model = model_of(TCL.example())
    image, vocabulary = example_image(), vocabulary_of(model.method)
    plain, other = Segmenter(model), Segmenter(replace(model, backend=openvino))
    assert (plain.settings()["backend"], other.settings()["backend"]) == ("torch", "openvino")
    features = other.encode(image)
    with pytest.raises(SettingsError, match="another model or other settings"):
        plain.segment(features, vocabulary)
    difference = other.score_maps(features, vocabulary) - plain.score_maps(plain.encode(image), vocabulary)
    assert difference.abs().max() < 1e-4


def test_batches_and_threads_share_a_network(openvino: Backend) -> None:
    from concurrent.futures import ThreadPoolExecutor

    encode = openvino.encoder(TCL.example(), "", torch.float32)
    windows = example_windows(6, (32, 32))
    expected = encode(windows)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(encode, [window[None] for window in windows]))
    assert torch.equal(torch.cat([part.image_emb for part in found]), expected.image_emb)


def test_a_network_is_exported_once_and_mended(
    openvino: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tcl_core.backends.openvino as module

    exported: list[object] = []
    export = module._Networks._export
    monkeypatch.setattr(module._Networks, "_export", lambda self, shape: exported.append(shape) or export(self, shape))
    method, windows = TCL.example(), example_windows(1, (32, 32))

    def encode(identity: str = "a") -> torch.Tensor:
        return make_backend("openvino", tmp_path).encoder(method, identity, torch.float32)(windows).image_emb

    first = encode()
    assert torch.equal(encode(), first) and len(exported) == 1
    encode("other weights")
    assert len(exported) == 2
    for damage in (b"", b"<net/>"):
        for place in tmp_path.iterdir():
            (place / "network.xml").write_bytes(damage)
        exported.clear()
        assert torch.equal(encode(), first) and torch.equal(encode(), first) and len(exported) == 1


def test_half_precision_on_a_gpu_is_not_openvinos(openvino: Backend) -> None:
    with pytest.raises(SettingsError, match="float32, bfloat16 or int8"):
        openvino.encoder(TCL.example(), "", torch.float16)


def test_the_folder_of_networks_is_bounded(tmp_path: Path) -> None:
    store = NetworkStore(tmp_path, most=25_000)
    left = tmp_path / "part-left"
    left.mkdir()
    os.utime(left, (0, 0))
    for number in range(5):
        store.write(str(number), lambda path: path.write_bytes(b"x" * 10_000))
        assert store.read(str(number), Path.read_bytes) == b"x" * 10_000
        time.sleep(0.02)
        store.read("0", Path.read_bytes)
    kept = [str(number) for number in range(5) if store.read(str(number), Path.read_bytes) is not None]
    assert kept == ["0", "4"] and not left.exists()


def test_networks_are_replaced_and_adopted(tmp_path: Path) -> None:
    store, other = NetworkStore(tmp_path / "a"), NetworkStore(tmp_path / "b")

    def both(path: Path) -> None:
        path.write_bytes(b"net")
        path.with_suffix(".bin").write_bytes(b"weights")

    store.write("a", lambda path: path.write_bytes(b"old"))
    store.write("a", lambda path: path.write_bytes(b"ignored"))
    assert store.read("a", Path.read_bytes) == b"old"
    store.replace("a", lambda path: path.write_bytes(b"new"))
    assert store.read("a", Path.read_bytes) == b"new"
    other.write("b", both)
    store.adopt(tmp_path / "b")
    assert store.read("b", lambda path: path.with_suffix(".bin").read_bytes()) == b"weights"
    assert len(store.paths("network.xml")) == 2 and len(list((tmp_path / "a").iterdir())) == 2
    with pytest.raises(OSError, match="full"):
        store.replace("a", lambda path: (_ for _ in ()).throw(OSError("full")))
    assert store.read("a", Path.read_bytes) == b"new"


def test_a_full_disk_costs_time_alone(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("No space left on device\nand more")

    with pytest.warns(UserWarning, match=r"cannot be cached \(No space left on device\)"):
        NetworkStore(tmp_path).write("a", full)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("fast", "cpu", "--backend: backend 'fast' is unknown; use auto, torch, compile, openvino"),
        ("openvino", "cpu", r"not installed; run pip install 'tcl-annotate\[openvino\]', or use --backend torch"),
        ("openvino", "cuda", "runs on the CPU, not on cuda"),
    ],
)
def test_backends_that_cannot_be(name: str, device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_module, "_has_openvino", lambda: False)
    with pytest.raises(SettingsError, match=message):
        select_backend(name, device)
    assert available_backends() == ("torch", "compile")


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "libjemalloc.so.2"),
        ("/opt/my libraries/libtcmalloc_minimal.so.4.5.9", "libtcmalloc_minimal.so.4.5.9"),
        ("/usr/lib/libmimalloc.so", "libmimalloc.so"),
        ("/site-packages/openvino/libs/libtbbmalloc.so.2", None),
        ("/home/jemalloc/lib/libc.so.6", None),
    ],
)
def test_openvino_with_another_allocator_is_refused(
    library: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = tmp_path / "maps"
    maps.write_text(f"7f00-7f01 r-xp 00000000 fe:00 1 /usr/lib/libm.so.6\n7f02-7f03 r--p 00000000 fe:00 2 {library}\n")
    monkeypatch.setattr(choice_module, "_MAPPED", maps)
    monkeypatch.setattr(choice_module, "_has_openvino", lambda: True)
    monkeypatch.setattr(choice_module, "has_wide_vectors", lambda: True)
    monkeypatch.delenv("TCL_ANNOTATE_BACKEND", raising=False)
    choice_module._other_allocator.cache_clear()
    try:
        assert select_backend() == ("torch" if name else "openvino")
        assert ("openvino" in available_backends()) == (name is None)
        if name:
            with pytest.raises(
                SettingsError, match=f"crashes with the memory allocator {re.escape(name)}; take it out"
            ):
                select_backend("openvino")
    finally:
        choice_module._other_allocator.cache_clear()


@pytest.mark.parametrize(
    ("variable", "installed", "wide", "device", "chosen"),
    [
        ("", True, True, "cpu", "openvino"),
        ("", True, False, "cpu", "torch"),
        ("", False, True, "cpu", "torch"),
        ("", True, True, "cuda", "torch"),
        ("torch", True, True, "cpu", "torch"),
        ("openvino", True, False, "cpu", "openvino"),
        ("openvino", True, False, "cuda", "torch"),
        ("compile", True, True, "cpu", "compile"),
    ],
)
def test_what_auto_means(
    variable: str, installed: bool, wide: bool, device: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCL_ANNOTATE_BACKEND", variable)
    monkeypatch.setattr(choice_module, "_has_openvino", lambda: installed)
    monkeypatch.setattr(choice_module, "has_wide_vectors", lambda: wide)
    assert select_backend("auto", device) == chosen


@pytest.mark.parametrize(
    ("backend", "fast", "precision", "chosen"),
    [
        ("openvino", True, "auto", torch.bfloat16),
        ("openvino", False, "auto", torch.float32),
        ("openvino", True, "float32", torch.float32),
        ("openvino", False, "bfloat16", torch.bfloat16),
        ("torch", True, "auto", torch.float32),
    ],
)
def test_what_precision_auto_means(
    backend: str,
    fast: bool,
    precision: str,
    chosen: torch.dtype,
    openvino: Backend,
    tiny_model_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading_module, "has_fast_bfloat16", lambda: fast)
    assert load_model(tiny_model_path, device="cpu", precision=precision, backend=backend).precision == chosen


def test_a_variable_that_names_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCL_ANNOTATE_BACKEND", "quick")
    with pytest.raises(SettingsError, match="TCL_ANNOTATE_BACKEND: backend 'quick' is unknown"):
        select_backend()


def test_a_compiler_that_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(network: object, **settings: object) -> Callable[..., object]:
        def run(padded: torch.Tensor) -> object:
            raise type("InvalidCxxCompiler", (RuntimeError,), {"__module__": "torch._inductor.exc"})("No C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(SettingsError, match=r"cannot compile the network \(No C\+\+ compiler\); install a C\+\+"):
        CompiledBackend().encoder(TCL.example(), "", torch.float32)(example_windows(1))


@pytest.mark.parametrize(
    "command",
    [
        ["segment", "image.png", "--label", "cat"],
        ["prelabel", "image.png", "--label", "cat", "--out", "found.json"],
        ["compare", "image.png", "--label", "cat", "--model", "maskclip:MODEL", "--preview", "page"],
        ["evaluate", "playground", "--limit", "1"],
        ["benchmark", "segment"],
    ],
)
def test_commands_take_a_backend(
    command: list[str], tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from tcl_core.cli.main import cli

    monkeypatch.chdir(tmp_path)
    Image.fromarray(example_image()).save("image.png")
    words = [word.replace("MODEL", str(tiny_model_path)) for word in command]
    result = CliRunner().invoke(cli, [*words, "--model", str(tiny_model_path), "--backend", "fast"])
    assert result.exit_code and "backend 'fast' is unknown" in result.output + str(result.exception)


def test_the_benchmark_compares_backends(openvino: Backend) -> None:
    from tcl_core.benchmarks.segment import format_rows, run_backends

    model = model_of(TCL.example())
    first, second = run_backends([model, replace(model, backend=openvino)], size=(40, 50), repeats=1)
    assert (first.what, first.ratio, second.compared_with) == ("encode with torch", 1, "torch")
    assert second.what == "encode with openvino" and second.ratio == pytest.approx(first.seconds / second.seconds)
    assert "times as fast as torch" in format_rows([first, second])
    with pytest.raises(SettingsError, match="at least 1"):
        run_backends([model], repeats=0)


def test_a_model_has_the_backend_that_was_asked_for(tiny_model_path: Path, openvino: Backend) -> None:
    assert load_model(tiny_model_path, backend="torch").backend.name == "torch"
    assert load_model(tiny_model_path, backend="openvino").backend.name == "openvino"


_SIGNAL = """
import faulthandler, gc, os, signal, threading
from dataclasses import replace

import torch

from tcl_core.backends import make_backend
from tcl_core.segmentation.segmenter import Segmenter
from tests.contract.examples import example_image, example_of, model_of, vocabulary_of

faulthandler.enable()  # has a stack for signals of its own
method = example_of("tcl")


def segmenter():
    model = replace(model_of(method), precision=torch.bfloat16, backend=make_backend("openvino", None))
    made = Segmenter(model)
    made.segment_image(example_image(), vocabulary_of(method))
    return made


def let_go():
    held.clear()
    gc.collect()


held, heard = [], []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
for _ in range(3):
    held.append(segmenter())
    other = threading.Thread(target=let_go)
    other.start()
    other.join()
    os.kill(os.getpid(), signal.SIGUSR1)
print(len(heard))
"""


@pytest.mark.slow
def test_signals_are_survived_after_networks_are_gone(openvino: Backend) -> None:
    """OpenVINO that was unloaded took the stack of signals with it on processors with wide registers."""
    done = subprocess.run([sys.executable, "-c", _SIGNAL], cwd=REPOSITORY, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout.split()) == (0, ["3"]), done.stderr
