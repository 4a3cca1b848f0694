"""CLIPs that are built without memory of their own, against open_clip's own way."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from tcl_core.errors import WeightsError
from tcl_core.models.towers import build_clip

CONFIG: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 24, "head_width": 8, "layers": 2},
    "text_cfg": {"context_length": 6, "vocab_size": 20, "width": 16, "heads": 2, "layers": 2},
}


def variant(vision: dict[str, Any], text: dict[str, Any], **others: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG) | others
    config["vision_cfg"] |= vision
    config["text_cfg"] |= text
    return config


def usual(config: dict[str, Any]) -> open_clip.CLIP:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = open_clip.CLIP(**config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "config",
    [
        variant({}, {}),
        variant({}, {}, quick_gelu=True),
        variant({"pool_type": "avg"}, {"pool_type": "first"}),
        variant({"pool_type": "avg", "final_ln_after_pool": True}, {"pool_type": "last"}),
        variant({"no_ln_pre": True}, {"no_causal_mask": True, "pool_type": "last"}),
        variant({"ls_init_value": 0.5}, {"ls_init_value": 0.5}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_is_the_clip_that_open_clip_builds(config: dict[str, Any], dtype: torch.dtype) -> None:
    model = usual(config).to(dtype).float()
    random = torch.get_rng_state()
    clip = build_clip(config, {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, "x")
    assert torch.equal(torch.get_rng_state(), random)
    built = clip.model
    expected = dict(model.named_buffers())
    assert dict(built.named_buffers()).keys() == expected.keys()
    assert all(torch.equal(buffer, expected[name]) for name, buffer in built.named_buffers())
    assert [name for name, _ in built.named_parameters()] == [name for name, _ in model.named_parameters()]
    own = model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in built.state_dict().items())
    for parameter in built.parameters():
        assert type(parameter) is nn.Parameter and not parameter.requires_grad
        assert parameter.dtype == torch.float32 and parameter.is_contiguous() and parameter.device.type == "cpu"
    images, tokens = torch.randn(2, 3, 16, 16), torch.tensor([[18, 3, 4, 19, 0, 0], [18, 5, 19, 0, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(built.encode_image(images), model.encode_image(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(built.encode_text(tokens), model.encode_text(tokens), rtol=1e-5, atol=1e-5)


def test_tensors_in_another_order_of_axes_become_contiguous() -> None:
    model = usual(CONFIG)
    state = {name: x.t().contiguous().t() if x.dim() == 2 else x for name, x in model.state_dict().items()}
    assert all(parameter.is_contiguous() for parameter in build_clip(CONFIG, state, "x").parameters())


@pytest.mark.parametrize("text", [{"embed_cls": True, "pool_type": "last"}])
def test_a_text_tower_with_a_class_token_is_refused(text: dict[str, Any]) -> None:
    config = variant({}, text)
    with pytest.raises(WeightsError, match=r"^x: "):
        build_clip(config, usual(CONFIG).state_dict(), "x")
