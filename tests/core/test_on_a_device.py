"""What a GPU must not be asked to do, found without one.

PyTorch can pretend tensors on a CUDA device: they have shapes but no numbers, so that everything that would have to
wait for the device to see a number is an error, and so is a tensor that was made on the CPU by mistake.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tcl_core.devices import autocast, to_device
from tcl_core.methods import list_methods, method_class
from tcl_core.refinement.pamr import Pamr
from tcl_core.segmentation.argmax import label_map_from_scores
from tcl_core.segmentation.background_names import strongest_names
from tcl_core.vocabulary import Vocabulary
from tests.contract.examples import TEMPLATES


def pretended(module: nn.Module) -> Any:
    """The module with tensors that pretend to be on a CUDA device; called inside a `FakeTensorMode`."""
    held: dict[int, Any] = {id(x): torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in module.buffers()}
    for x in module.parameters():
        held[id(x)] = nn.Parameter(torch.empty(x.shape, dtype=x.dtype, device="cuda"), requires_grad=False)
    return copy.deepcopy(module, held)


every_method = pytest.mark.parametrize("name", list_methods())


@every_method
@pytest.mark.parametrize("size", [(40, 50), (32, 32)], ids=["padded", "whole patches"])
@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_method_stays_on_the_device_and_never_waits_for_it(name: str, size: tuple[int, int]) -> None:
    example = method_class(name).example()
    with FakeTensorMode(), torch.no_grad():
        method = pretended(example)
        windows = torch.empty(3, 3, *size, device="cuda")
        for precision in (torch.float32, torch.bfloat16):
            with autocast("cuda", precision):
                features = method.encode(windows)
            assert {tensor.device.type for tensor in features.tensors().values()} == {"cuda"}
        guide = method.window_guide(Pamr(), windows)
        refine = None if guide is None else lambda maps: Pamr().refine(guide, maps)
        prompts = method.embed_prompts([], TEMPLATES)
        rows = {key: value.new_empty(4, *value.shape[1:]) for key, value in prompts.tensors().items()}
        prompts = type(prompts)(**rows)
        prompts = method.prompts_for_image(features, prompts)
        planes = method.similarities(features, prompts, refine)
        assert planes.device.type == "cuda" and planes.shape == (3, 4, *size)
        assert method.name_values(features, prompts).device.type == "cuda"
        score_size = method.score_size(size, (90, 100))
        image = method.image_guide(Pamr(), windows[:1], score_size)
        bound = None if image is None else lambda maps: Pamr().refine(image, maps)
        settled = method.settle(planes[0], score_size, bound)
        scores = method.finish(settled, [0, 1, 1, -1], bound)
        assert scores.device.type == "cuda" and scores.shape == (3, *score_size)


def test_a_long_vocabulary_is_judged_in_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a label can win anywhere is asked for all labels at once."""
    waits = 0
    to_list, to_float = torch.Tensor.tolist, torch.Tensor.__float__

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: torch.Tensor) -> Any:
            nonlocal waits
            waits += 1
            return function(tensor)

        return call

    monkeypatch.setattr(torch.Tensor, "tolist", counted(to_list))
    monkeypatch.setattr(torch.Tensor, "__float__", counted(to_float))
    vocabulary = Vocabulary.from_options([f"label {number}" for number in range(50)])
    scores = torch.rand(50, 6, 7, generator=torch.Generator().manual_seed(0))
    label_map, _ = label_map_from_scores(scores, vocabulary, 0.5, (6, 7))
    assert waits == 1
    assert (label_map == scores.argmax(dim=0).numpy() + 1).all()


def test_the_strongest_names_are_found_in_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = [tuple(f"{group}-{name}" for name in range(count)) for group, count in enumerate((16, 15, 9))]
    winners = [
        torch.stack(
            [torch.rand(2, 8, 9, generator=generator), torch.randint(len(g), (2, 8, 9), generator=generator)], 1
        )
        for g in groups
    ]
    counts: dict[str, int] = dict.fromkeys([name for group in groups for name in group], 0)
    for place in itertools.product(range(2), range(8), range(9)):
        window, row, column = place
        best = max(range(3), key=lambda group: float(winners[group][window, 0, row, column]))
        counts[groups[best][int(winners[best][window, 1, row, column])]] += 1
    ranked = sorted(counts, key=counts.__getitem__, reverse=True)[:16]
    expected = [name for name in counts if name in ranked and counts[name] >= 0.01 * 144]
    waits = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: waits.append(1) or to_list(tensor))
    assert list(strongest_names(groups, winners)) == expected
    assert len(waits) == 1


def test_tensors_of_the_cpu_stay_where_no_gpu_is() -> None:
    tensor = torch.rand(3)
    assert to_device(tensor, "cpu") is tensor
    assert to_device(tensor, "meta").device.type == "meta"
