"""The benchmark of a GPU, tried on the CPU with a tiny network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import command, parity, speed
from benchmarks.gpu.limits import scarce_memory
from benchmarks.gpu.models import (
    METHODS,
    ON_PLAYGROUND,
    RandomModels,
    Scale,
    class_directions,
    enlarged_scene,
    vocabulary_of,
)
from benchmarks.gpu.sections import Figure, Section, format_result, run_sections
from benchmarks.gpu.table import PAGE, page_with, table
from benchmarks.gpu.timing import interleaved, mode, peak_memory
from tcl_core.benchmarks.machine import describe_machine, loaded_distributions
from tcl_core.methods.tcl.model import TCLFeatures, TCLOptions
from tcl_core.playground import CLASS_NAMES
from tcl_core.vocabulary import Label, Vocabulary

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models() -> RandomModels:
    return RandomModels(Scale.small(), CPU)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", ["image tower, weights", "parity, random weights, sclip"])
def test_one_part_alone(part: str, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert command.main(["--device", "cpu", "--small", "--only", part, "--out", str(out)]) == 0
    assert all(part in section["name"] for section in read(out)["sections"])


@pytest.mark.slow
def test_all_of_it_but_the_compiler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Those that differ in what they do; the sections of the others are made in the same way.
    monkeypatch.setattr(command, "METHODS", ("tcl", "code", "scclip"))
    monkeypatch.setattr(command, "ON_PLAYGROUND", ("tcl", "scclip"))
    out = tmp_path / "results" / "gpu.json"
    # Few scenes and tiny networks may miss the bars of bfloat16, and nothing may fail.
    words = ["--device", "cpu", "--small", "--out", str(out), "--limit", "0", "--commit", "abc"]
    assert command.main(words) in (0, 1)
    record, said = read(out), capsys.readouterr().out
    assert (record["commit"], record["small"], record["machine"]["device"]) == ("abc", True, "cpu")
    assert {"torch", "numpy", "python"} <= set(record["versions"])
    assert [path.name for path in out.parent.iterdir()] == ["gpu.json"]
    sections = record["sections"]
    assert [section["error"] for section in sections] == [""] * len(sections)
    assert [section["name"] for section in sections if section["skipped"]] == ["image tower, compiled, bfloat16"]
    for section in sections:
        if not section["skipped"]:
            assert section["figures"] and section["seconds"] > 0 and f"== {section['name']} (" in said
        assert all(np.isfinite(figure["value"]) for figure in section["figures"])
        exact = [figure for figure in section["figures"] if "float32" in figure["what"] and figure["met"] is not None]
        assert all(figure["met"] for figure in exact if "bfloat16" not in figure["what"])


@pytest.mark.slow
def test_a_part_that_fails_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Iterator[Figure]:
        yield Figure("before", 1.0, "s")
        raise RuntimeError("a kernel\nis missing")

    def fine() -> Iterator[Figure]:
        yield Figure("after", 2.0, "s")

    monkeypatch.setattr(command, "all_sections", lambda _: [Section("one", broken), Section("two", fine)])
    out = tmp_path / "gpu.json"
    assert command.main(["--device", "cpu", "--small", "--out", str(out)]) == 1
    one, two = read(out)["sections"]
    assert one["error"] == "RuntimeError: a kernel is missing" and "broken" in one["trace"]
    assert [figure["what"] for figure in one["figures"] + two["figures"]] == ["before", "after"]
    said = capsys.readouterr().out
    assert "FAILED: RuntimeError: a kernel is missing" in said and said.endswith("failed, or a bar missed: one\n")


def test_a_bar_that_is_missed_is_a_failure() -> None:
    figures = [Figure("a", 1.0, "%", "at least 2", False), Figure("b", 3.0, "%", "at least 2", True)]
    missed, met = run_sections([Section(x.what, lambda x=x: iter([x])) for x in figures], lambda _: None)  # type: ignore[misc]
    assert missed.failed and not met.failed
    assert "at least 2: NO" in format_result(missed) and "at least 2: yes" in format_result(met)


def test_what_is_done_is_told_after_each_part() -> None:
    told: list[int] = []
    sections = [Section(str(n), lambda: iter([]), optional=n == 2) for n in range(3)]
    results = run_sections(sections, lambda done: told.append(len(done)), limit=0)
    assert told == [1, 2, 3] and results[2].skipped and not results[2].failed


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--device", "cuda:99"], "cuda"), (["--only", "nothing"], "nothing"), (["--out", "/dev/null/x.json"], "")],
)
def test_bad_input_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--small", "--device", "cpu", "--out", str(tmp_path / "x.json"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_every_method_and_refinement_is_compared_with_the_cpu(models: RandomModels) -> None:
    names = [section.name for section in command.all_sections(models)]
    assert len(names) == len(set(names))
    for method in METHODS:
        for how in ("with", "without"):
            assert f"parity, random weights, {method} {how} PAMR" in names
            assert (f"parity, playground, {method} {how} PAMR" in names) == (method in ON_PLAYGROUND)
    assert {"tcl", "maskclip", "maskclip-refined", "sclip", "clearclip", "naclip", "scclip"} == set(ON_PLAYGROUND)
    assert set(METHODS) == {"code", "mgca-style", *ON_PLAYGROUND}


def test_agreement_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    expected = torch.rand(4, 9, 11, generator=generator)
    found = expected + 0.05 * torch.rand(4, 9, 11, generator=generator)
    agreement = parity.Agreement()
    agreement.add(expected, found, (9, 11), floor=0.7)
    equal = unequal = 0
    for row in range(9):
        for column in range(11):
            winners = []
            for scores in (expected, found):
                values = [0.7, *(float(scores[k, row, column]) for k in range(4))]
                winners.append(values.index(max(values)))
            values = sorted([0.7, *(float(expected[k, row, column]) for k in range(4))])
            equal += winners[0] == winners[1]
            unequal += winners[0] != winners[1] and values[-1] - values[-2] > 2e-4
    assert (agreement.pixels, agreement.equal, agreement.unequal) == (99, equal, unequal) and 0 < equal < 99
    assert agreement.largest == pytest.approx(float((expected - found).abs().max()))
    assert agreement.exact("x").met is False and agreement.rounded("x").met is False


def test_near_ties_are_forgiven_and_small_errors_met() -> None:
    expected = torch.tensor([0.5, 0.50004]).view(2, 1, 1).expand(2, 3, 3).clone()
    found = torch.tensor([0.50004, 0.5]).view(2, 1, 1).expand(2, 3, 3).clone()
    agreement = parity.Agreement()
    agreement.add(expected, found, (3, 3))
    assert (agreement.equal, agreement.unequal) == (0, 0) and agreement.exact("x").met
    assert agreement.rounded("x").met is False


def test_a_changed_mean_iou_misses_the_bar() -> None:
    scores = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    agreement = parity.Agreement()
    agreement.add(scores, scores, (4, 4))
    assert agreement.rounded("x", {"mean IoU": 50.0}, 0.2).met
    assert not agreement.rounded("x", {"mean IoU": 50.0}, -0.4).met


def test_directions_are_those_from_the_mean_to_the_labels_pixels() -> None:
    label_map = np.array([[1, 1], [2, 2]], np.int32)
    pixels = torch.nn.functional.normalize(torch.tensor([[3.0, 0.0], [3.0, 1.0], [1.0, 3.0], [0.0, 3.0]]), dim=1)
    image_emb = pixels.T.reshape(1, 2, 2, 2)
    features = TCLFeatures.of(image_emb, image_emb, TCLOptions(unit_points=1), (2, 2), (2, 2), (0, 0))
    vocabulary = Vocabulary((Label(CLASS_NAMES[0]), Label(CLASS_NAMES[1])))
    rows = class_directions(features, [label_map], vocabulary)
    expected = pixels[:2].mean(dim=0) - pixels.mean(dim=0)
    torch.testing.assert_close(rows[0], torch.nn.functional.normalize(expected, dim=0))
    torch.testing.assert_close(rows[1], -rows[0])


@pytest.mark.slow
def test_random_weights_give_regions_that_hold_together(models: RandomModels) -> None:
    """End to end the polygons of noise would be all that is measured."""
    scenes = [enlarged_scene(index, (64, 64)) for index in range(2)]
    found = next(speed.file_to_coco(models, "float32", False))
    assert found.met and 1 < found.details["regions of an image"] < 64 * 64 / 64
    vocabulary = vocabulary_of([label_map for _, label_map in scenes], most=3)
    assert len(vocabulary.labels) == 3 and not vocabulary.background


def test_both_sides_have_the_same_weights() -> None:
    other = RandomModels(Scale.small(), CPU)
    for name in ("tcl", "sclip"):
        one, two = (other.method(name, on_device=on).state_dict() for on in (False, True))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert other.clip is not other.clip_on_device


def test_timm_has_as_many_weights_in_its_tower(models: RandomModels) -> None:
    """The same network but for the bias that timm's head has."""
    ours = sum(parameter.numel() for parameter in models.clip.visual.parameters())
    other = sum(parameter.numel() for parameter in models.timm.parameters())
    grid = (models.scale.side // models.scale.patch) ** 2 - (models.scale.side // 2 // models.scale.patch) ** 2
    bias = models.scale.embed_dim
    assert other == ours + grid * models.scale.option("width") + bias


def test_times_are_medians_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([9.0, 9.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0])
    monkeypatch.setattr("benchmarks.gpu.timing.seconds", lambda *_: next(taken))
    assert interleaved({"a": lambda: None, "b": lambda: None}, CPU, repeats=3, warm=1) == {"a": 3.0, "b": 4.0}


def test_modes_leave_no_trace() -> None:
    before = torch.get_float32_matmul_precision()
    with mode("tf32", CPU):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    with mode("bfloat16", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with peak_memory(CPU) as peak:
        pass
    assert peak.details == {}


def test_scarce_memory_ends() -> None:
    from tcl_core.methods.tcl import TCL

    method = TCL.example()
    with scarce_memory(CPU), pytest.raises(torch.OutOfMemoryError):
        method.encode(torch.rand(1, 3, 40, 40))
    assert len(method.encode(torch.rand(1, 3, 40, 40))) == 1


def test_machine_and_versions() -> None:
    machine = describe_machine(CPU)
    assert machine["device"] == "cpu" and machine["processors"] >= 1 and machine["processor"]
    versions = loaded_distributions()
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert "open_clip_torch" in versions


def test_the_page_has_the_recorded_figures() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page_with(table(), page) == page and "| encode (TCL), bfloat16 |" in page
