from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from tcl_core.errors import WeightsError
from tcl_core.towers.clip_blocks import attention_block, diagonal_attention_block
from tcl_core.towers.clip_config import clip_config_from_state_dict
from tcl_core.towers.open_clip_vit import FrozenClip


def build(quick_gelu: bool = False, **vision: Any) -> open_clip.CLIP:
    torch.manual_seed(0)
    cfg = {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 8, "layers": 3} | vision
    text = {"context_length": 6, "vocab_size": 20, "width": 16, "heads": 2, "layers": 2}
    model = open_clip.CLIP(embed_dim=12, vision_cfg=cfg, text_cfg=text, quick_gelu=quick_gelu).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


VARIANTS = [
    {},
    {"quick_gelu": True},
    {"pool_type": "avg"},
    {"pool_type": "avg", "final_ln_after_pool": True},
    {"head_width": 24},
    {"ls_init_value": 0.5},
    {"no_ln_pre": True},
    {"norm_kwargs": {"eps": 1e-2}},
    {"image_size": (16, 40), "mlp_ratio": 2.0},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_encode_image_is_open_clips_at_the_trained_size(variant: dict[str, Any]) -> None:
    model = build(**variant)
    image = torch.randn(2, 3, *model.visual.image_size)
    expected = model.encode_image(image).detach()
    torch.testing.assert_close(FrozenClip(model).encode_image(image), expected, rtol=1e-5, atol=1e-5)


def cubic_reference(table: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic resize (a = -0.75, half-pixel centers, no antialias, clamped border) by loops."""

    def weight(t: float) -> float:
        a, t = -0.75, abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    def resize(values: np.ndarray, length: int) -> np.ndarray:
        out = np.zeros((length, *values.shape[1:]))
        for i in range(length):
            x = (i + 0.5) * len(values) / length - 0.5
            for k in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                out[i] += weight(x - k) * values[min(max(k, 0), len(values) - 1)]
        return out

    return resize(resize(table, size[0]).swapaxes(0, 1), size[1]).swapaxes(0, 1)


@pytest.mark.parametrize("grid", [(4, 4), (4, 5), (3, 7), (1, 1)])
def test_any_size_uses_the_resized_position_embedding(grid: tuple[int, int]) -> None:
    model = build()
    position = model.visual.positional_embedding.detach().double().numpy()
    resized = cubic_reference(position[1:].reshape(4, 4, -1), grid).reshape(grid[0] * grid[1], -1)
    native = build(image_size=(grid[0] * 8, grid[1] * 8))
    state = model.state_dict() | {
        "visual.positional_embedding": torch.from_numpy(np.concatenate([position[:1], resized])).float()
    }
    native.load_state_dict(state)
    image = torch.randn(1, 3, grid[0] * 8, grid[1] * 8)
    torch.testing.assert_close(
        FrozenClip(model).encode_image(image), native.encode_image(image).detach(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("variant", [{}, {"quick_gelu": True}, {"ls_init_value": 0.5}], ids=str)
def test_diagonal_block_is_attention_with_a_diagonal_mask(variant: dict[str, Any]) -> None:
    block = build(**variant).visual.transformer.resblocks[-1]
    tokens = torch.randn(2, 5, 24)
    mask = torch.full((5, 5), float("-inf")).fill_diagonal_(0)
    torch.testing.assert_close(diagonal_attention_block(block, tokens), block(tokens, attn_mask=mask))


def test_diagonal_block_gives_the_unused_queries_and_keys_a_zero_gradient() -> None:
    """They must stay under weight decay, so their gradient is zero and not missing."""
    block = build().visual.transformer.resblocks[-1]
    diagonal_attention_block(block, torch.randn(2, 5, 24)).square().sum().backward()
    gradient = block.attn.in_proj_weight.grad
    assert gradient[:48].abs().max() == 0
    assert gradient[48:].abs().max() > 0


@pytest.mark.parametrize("variant", [{}, {"quick_gelu": True}, {"head_width": 24}, {"ls_init_value": 0.5}], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_block_is_the_block_in_value_and_gradient(variant: dict[str, Any], causal: bool) -> None:
    block = build(**variant).visual.transformer.resblocks[0]
    mask = torch.full((7, 7), float("-inf")).triu(1) if causal else None
    one = torch.randn(3, 7, 24, requires_grad=True)
    other = one.detach().clone().requires_grad_()
    ours, theirs = attention_block(block, one, mask), block(other, attn_mask=mask)
    torch.testing.assert_close(ours, theirs)
    for result in (ours, theirs):
        result.square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("training", [False, True])
def test_blocks_that_take_the_sequence_first(training: bool) -> None:
    """Older open_clip releases build their blocks so."""
    model = build()
    clip, image = FrozenClip(model), torch.randn(2, 3, 32, 24, requires_grad=training)
    with torch.set_grad_enabled(training):
        expected = clip.encode_image(image)
    for index, block in enumerate(model.visual.transformer.resblocks):
        turned = ResidualAttentionBlock(24, 3, batch_first=False).eval()
        turned.load_state_dict(block.state_dict())
        model.visual.transformer.resblocks[index] = turned
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(clip.encode_image(image), expected, rtol=1e-4, atol=1e-5)


def test_tokens_and_dense_features_have_the_documented_shapes() -> None:
    clip, image = FrozenClip(build()), torch.randn(2, 3, 16, 40)
    tokens = clip.tokens_before_last(image)
    assert tokens.shape == (2, 1 + 2 * 5, 24)
    dense = clip.last_block_diagonal(tokens, clip.grid(image))
    assert dense.shape == (2, 24, 2, 5)
    assert clip.project_dense(dense).shape == (2, 12, 2, 5)
    # Row-major: the token after the class token is the top-left patch.
    last = diagonal_attention_block(clip.visual.transformer.resblocks[-1], tokens)
    torch.testing.assert_close(dense[:, :, 1, 3], last[:, 1 + 1 * 5 + 3])


def test_properties() -> None:
    clip = FrozenClip(build())
    sizes = (clip.patch_size, clip.embed_dim, clip.width, clip.context_length, clip.depth)
    assert sizes == (8, 12, 24, 6, 3)


def test_text_is_open_clips_and_wants_whole_contexts() -> None:
    model = build()
    tokens = torch.tensor([[18, 3, 19, 0, 0, 0], [18, 5, 6, 7, 8, 19]])
    expected = model.encode_text(tokens).detach()
    clip = FrozenClip(model)
    torch.testing.assert_close(clip.encode_text(tokens), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected \\[N, 6\\]"):
        clip.encode_text(tokens[:, :4])


@pytest.mark.parametrize("size", [(33, 32), (32, 0), (8, 12)])
def test_size_must_be_whole_patches(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="patch size 8"):
        FrozenClip(build()).encode_image(torch.zeros(1, 3, *size))


def test_frozen_yet_differentiable_in_the_image() -> None:
    model = build().train()
    clip = FrozenClip(model)
    assert not clip.train().training and not model.training and not model.visual.transformer.training
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    image = torch.randn(1, 3, 40, 32, requires_grad=True)
    clip.encode_image(image).square().sum().backward()
    assert image.grad is not None
    assert bool((image.grad.abs().amax(dim=(0, 1)) > 0).all()), "some pixel has no influence"


def test_gradient_of_the_image_by_finite_differences() -> None:
    clip = FrozenClip(build().double())
    image = torch.randn(1, 3, 16, 16, dtype=torch.double, requires_grad=True)
    clip.encode_image(image)[0, 3].backward()
    step = torch.zeros_like(image)
    step[0, 1, 5, 11] = 1e-5
    with torch.no_grad():
        slope = (clip.encode_image(image + step) - clip.encode_image(image - step))[0, 3] / 2e-5
    assert image.grad is not None
    assert float(image.grad[0, 1, 5, 11]) == pytest.approx(float(slope), rel=1e-5)


def test_bfloat16_autocast_stays_near() -> None:
    clip, image = FrozenClip(build()), torch.randn(2, 3, 32, 48)
    expected = clip.encode_image(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = clip.encode_image(image)
    assert bool(actual.isfinite().all())
    assert float(nn.functional.cosine_similarity(actual.float(), expected).min()) > 0.999


def other_towers() -> dict[str, nn.Module]:
    text = {"context_length": 6, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    resnet = {"image_size": 32, "width": 8, "layers": [1, 1, 1, 1], "head_width": 8}
    return {
        "ModifiedResNet": open_clip.CLIP(embed_dim=8, vision_cfg=resnet, text_cfg=text),
        "pools its tokens": build(attentional_pool=True, attn_pooler_heads=4),
        "custom attention blocks": build(qk_norm=True),
        "fewer than two blocks": build(layers=1),
        "NoneType": nn.Linear(2, 2),
    }


@pytest.mark.parametrize("name", list(other_towers()))
def test_other_image_towers_are_rejected(name: str) -> None:
    with pytest.raises(WeightsError, match=name):
        FrozenClip(other_towers()[name])


VISION = {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 8, "layers": 2}
TEXT = {"context_length": 6, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (open_clip.CLIP, {"pool_type": "none"}, "pool_type 'none'"),
        (open_clip.CLIP, {"proj_type": "none"}, "no projection"),
        (open_clip.CLIP, {"embed_cls": True}, "class token"),
        (open_clip.CustomTextCLIP, {}, "CustomTextCLIP"),
    ],
)
def test_text_towers_that_cannot_be_embedded_are_rejected(kind: Any, text: dict[str, Any], message: str) -> None:
    """Some of them would give numbers of another shape, others fail at the first prompt."""
    model = kind(embed_dim=12, vision_cfg=VISION, text_cfg={**TEXT, **text})
    with pytest.raises(WeightsError, match=message):
        FrozenClip(model)


def plain_state() -> dict[str, Tensor]:
    return build(mlp_ratio=3.0).state_dict()


def test_config_from_tensors_rebuilds_the_model() -> None:
    state = plain_state()
    config = clip_config_from_state_dict(state, head_width=8, text_heads=2, quick_gelu=False)
    open_clip.CLIP(**config).load_state_dict(state)
    assert config["vision_cfg"]["layers"] == 3 and config["text_cfg"]["layers"] == 2
    assert config["vision_cfg"]["mlp_ratio"] == 3.0


def test_config_from_tensors_of_something_else() -> None:
    state = plain_state()
    del state["visual.proj"]
    with pytest.raises(WeightsError, match="missing: visual.proj"):
        clip_config_from_state_dict(state)
    state = plain_state() | {"visual.positional_embedding": torch.zeros(12, 24)}
    with pytest.raises(WeightsError, match="11 grid positions"):
        clip_config_from_state_dict(state)
