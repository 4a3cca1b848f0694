from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch

from tcl_core.methods.tcl import TCL
from tcl_core.methods.tcl.model import TCLFeatures
from tcl_core.playground import COLORS, KINDS, caption_words, is_held_out
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import WordTokenizer
from tcl_core.vocabulary.templates import get_templates
from tests.training.tiny_playground import READER, TINY, short
from training.playground.clip import (
    ClipTraining,
    _collages,
    _embed_images,
    _local_similarity,
    _tiles,
    build_clip,
    clip_batches,
    clip_losses,
    embed_captions,
    whiten,
)
from training.playground.data import Captions, Images, draw_images, normalize
from training.playground.debias import color_axes, grounded
from training.playground.estimate import estimate
from training.playground.negatives import colors_met, negative_weights
from training.playground.recipe import RECIPE, clip_config
from training.playground.tcl import tcl_batches

COPIES = ["tcl-a", "tcl-b"]


@cache
def tiny() -> Images:
    """Drawn once, because the processes that draw take seconds to start."""
    return draw_images(TINY, READER, workers=1)


@pytest.mark.slow
def test_images_carry_no_ground_truth_and_no_held_out_combination() -> None:
    images = tiny()
    assert images.pixels.shape == (40, 32, 32, 3)
    for scene in images.scenes:
        assert scene.label_map.size == 0
        assert not any(is_held_out(thing.kind, thing.color) for thing in scene.objects)


def test_batches_repeat_for_the_same_generator() -> None:
    images = tiny()
    templates = get_templates("full")
    tokenizer = WordTokenizer(caption_words(templates), 16)
    how = Captions(templates, per_image=2)
    first, again = (images.batch(np.random.default_rng(3), 8, tokenizer, how) for _ in range(2))
    assert torch.equal(first[0], again[0]) and len(first[1]) == 2
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert first[0].min() >= -1 and first[0].max() <= 1


def test_whitened_features_are_centered_and_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 12, generator=generator) * torch.linspace(0.2, 2, 12) + 5
    embedded = features @ whiten(features, 8, seed=1)
    # Only the direction of the mean is removed, so means vanish up to rounding and components are uncorrelated.
    assert embedded.mean(dim=0).abs().max() < 1e-3 * embedded.std()
    correlation = torch.corrcoef(embedded.T) - torch.eye(8)
    assert correlation.abs().max() < 0.2


def test_the_contrastive_loss_prefers_the_right_pairs() -> None:
    model = build_clip(clip_config(60, 16), seed=0)
    images = torch.randn(4, 3, 48, 48)
    tokens = torch.randint(1, 59, (4, 16))
    terms = clip_losses(model, images, [tokens, tokens])
    alone = clip_losses(model, images, [tokens])
    assert terms["total"].item() == pytest.approx(alone["total"].item(), rel=2e-2)
    assert terms["scale"].item() == pytest.approx(1 / 0.07, rel=1e-3)
    assert "local" not in terms
    both = clip_losses(model, images, [tokens], local_weight=0.5)
    assert both["total"].item() == pytest.approx(both["global"].item() + 0.5 * both["local"].item(), rel=1e-5)
    assert both["global"].item() == pytest.approx(alone["global"].item(), rel=1e-5)


def test_weighted_negatives_count_as_often_as_they_should() -> None:
    """Against the losses written out: the share of a match among all that count, for each caption and for parts."""
    generator = torch.Generator().manual_seed(0)
    model = build_clip(clip_config(60, 16), seed=0)
    images = torch.randn(6, 3, 48, 48, generator=generator)
    captions = list(torch.randint(1, 59, (2, 6, 16), generator=generator))
    # One-sided, so that images by captions is not captions by images, and another for each caption.
    weights = [torch.full((6, 6), 0.5).tril(-1) + torch.eye(6), torch.ones(6, 6).triu()]
    with torch.no_grad():
        # Untrained embeddings are all alike; these are not.
        model.logit_scale.fill_(3.0)
        model.visual.proj *= 20 * torch.randn(192, 192, generator=generator)
    terms = clip_losses(model, images, captions, local_weight=1.0, negatives=weights)
    with torch.no_grad():
        image, patches = _embed_images(model, images, 1, (0, 0))
        texts = [model.encode_text(part, normalize=True) for part in captions]
    for name, cosines in (
        ("global", [image @ text.T for text in texts]),
        ("local", [_local_similarity(patches, text) for text in texts]),
    ):
        expected = []
        for cosine, weight in zip(cosines, weights, strict=True):
            counted = weight * (cosine.double() * terms["scale"].item()).exp()
            shares = torch.cat([counted.diagonal() / counted.sum(dim=dim) for dim in (0, 1)])
            expected.append(-shares.log().mean().item())
        assert terms[name].item() == pytest.approx(np.mean(expected), rel=1e-2)
        swapped = clip_losses(model, images, captions, local_weight=1.0, negatives=weights[::-1])
        assert swapped[name].item() != pytest.approx(np.mean(expected), rel=1e-2)
    terms["total"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    ones = clip_losses(model, images, captions, negatives=[torch.ones(6, 6)] * 2)
    assert ones["total"].item() == pytest.approx(clip_losses(model, images, captions)["total"].item(), rel=1e-6)


class Listener(WordTokenizer):
    """Remembers what it is given."""

    def __init__(self, *settings) -> None:
        super().__init__(*settings)
        self.heard: list[list[str]] = []

    def __call__(self, texts):
        self.heard.append(list(texts))
        return super().__call__(texts)


def test_a_batch_weighs_the_negatives_of_its_own_captions() -> None:
    images = tiny()
    tokenizer = Listener(caption_words(), 16)
    how = Captions((), per_image=2, brief=0.5, balanced=True)
    batch = images.batch(np.random.default_rng(3), 12, tokenizer, how)
    assert batch.negatives is not None and len(tokenizer.heard) == len(batch.negatives) == 2
    things = [
        found
        for image in batch.images
        for found, drawn in zip(images.things, images.pixels, strict=True)
        if torch.equal(normalize(drawn[None])[0], image)
    ]
    for texts, negatives in zip(tokenizer.heard, batch.negatives, strict=True):
        assert torch.equal(negatives, negative_weights(things, texts, colors_met(images.things, READER), READER))
        assert negatives.min() < 1
    assert images.batch(np.random.default_rng(3), 12, tokenizer, Captions(())).negatives is None


def test_balanced_stages_hand_the_weights_to_their_losses() -> None:
    recipe = short(RECIPE)
    templates = get_templates("full")
    tokenizer = WordTokenizer(caption_words(templates), 16)
    model = build_clip(clip_config(tokenizer.vocab_size, 16), seed=0)
    phase, stage = recipe.clip_phases[-1], recipe.tcl_stage
    views = (dataclasses.replace(phase.views[0], batch=16, collage=1),)
    totals = []
    for balanced in (False, True):
        shown = dataclasses.replace(phase, views=views, balanced=balanced)
        batch = clip_batches(shown, lambda _: tiny(), tokenizer, templates, 0, 8)(0)
        training = ClipTraining(model)
        tcl = TCL(FrozenClip(model), recipe.tcl)
        grounder = dataclasses.replace(stage, batch=16, balanced=balanced)
        own = tcl_batches(grounder, 0.7, lambda _: tiny(), tokenizer, templates, 0)(0)
        with torch.no_grad():
            own = tcl.share(own, torch.Generator().manual_seed(0))
            found = tcl.loss(tcl.embed(own), own)["tcli_loss"]
            totals.append((training.loss(training.embed(batch), batch)["local"].item(), found.item()))
    for plain, weighted in zip(*totals, strict=True):
        # Fewer images are told from the one that a caption fits.
        assert weighted < 0.97 * plain


def test_captions_are_embedded_as_open_clip_does() -> None:
    """Repeated ones, short ones, and one of the whole length; the gradient too."""
    model = build_clip(clip_config(60, 16), seed=0)
    captions = torch.zeros(24, 16, dtype=torch.int64)
    for row, end in enumerate([*range(1, 16), *range(3, 12)]):
        captions[row, :end] = torch.randint(1, 59, (end,))
        captions[row, end] = 59
    captions[20], captions[5] = captions[2], captions[17]
    gradients = []
    for embed in (embed_captions, lambda model, rows: model.encode_text(rows, normalize=True)):
        model.zero_grad()
        embedded = embed(model, captions)
        (embedded @ torch.linspace(-1, 1, 192)).square().sum().backward()
        gradients.append((embedded, model.token_embedding.weight.grad, model.positional_embedding.grad))
    for ours, theirs in zip(*gradients, strict=True):
        # Gradients are sums in another order, which depends on the number of threads too.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.detach().abs().max()))


def test_patches_of_a_collage_come_back_to_their_image() -> None:
    images = torch.rand(18, 3, 4, 5)
    collages = _collages(images, 3)
    assert collages.shape == (2, 3, 12, 15)
    assert torch.equal(collages[1, :, 4:8, 10:15], images[9 + 5])
    pixels = collages.flatten(2).transpose(1, 2)
    assert torch.equal(_tiles(pixels, (12, 15), 3), images.flatten(2).transpose(1, 2))


def test_a_shifted_collage_keeps_its_patches_in_place() -> None:
    """Without positions, a shift around the edges changes nothing but the order of the patches."""
    model = build_clip(clip_config(60, 16), seed=0)
    with torch.no_grad():
        model.visual.positional_embedding.zero_()
        images = torch.randn(4, 3, 16, 16)
        still, moved = (_embed_images(model, images, 2, shift) for shift in ((0, 0), (1, 3)))
    for one, other in zip(still, moved, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_colors_directions_are_those_in_which_things_of_a_kind_differ(monkeypatch) -> None:
    """Planted: each color has a direction of its own and each kind too; few kinds come in all, some come often."""
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
    kinds = KINDS[:6]
    asked: list[Images] = []

    def planted(tcl, tokenizer, images):
        asked.append(images)
        for number, color in enumerate(COLORS):
            for place, kind in enumerate(kinds):
                if not is_held_out(kind, color):
                    for _ in range(1 + 5 * (place == 2)):
                        yield color, kind, basis[number] + 3 * basis[20 + place]

    monkeypatch.setattr("training.playground.debias.grounded", planted)
    images = tiny().first(30)
    axes = color_axes(None, None, images, 11)
    assert asked == [images] and len(images) == len(images.things) == len(images.pixels) == 30
    assert axes.shape == (11, 64) and torch.allclose(axes @ axes.T, torch.eye(11), atol=1e-5)
    between = basis[1:12] - basis[:11]
    torch.testing.assert_close(between @ axes.T @ axes, between, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("training.playground.debias.grounded", lambda *_: iter([("red", "cup", basis[0])]))
    with pytest.raises(ValueError, match="none of the 30 training images shows a thing in black, blue"):
        color_axes(None, None, images, 11)


def test_things_are_seen_where_their_masks_are() -> None:
    """Embeddings that are the first thing's caption at the left, and the second's at the right."""
    tokenizer = WordTokenizer(caption_words(), 16)
    tcl = TCL(FrozenClip(build_clip(clip_config(tokenizer.vocab_size, 16), seed=0)), RECIPE.tcl)
    images = tiny()
    index = next(i for i, found in enumerate(images.things) if len(found) == 2)
    names, words = list(READER.words.things), READER.words
    things = [(words.colors[color], names[thing]) for thing, color in images.things[index]]
    texts = torch.linalg.qr(torch.randn(192, 2, generator=torch.Generator().manual_seed(0))).Q.T.contiguous()
    said = iter([texts])
    tcl.clip.encode_text = lambda _: next(said)
    planted = texts[0][None, :, None, None].repeat(1, 1, 8, 8)
    planted[..., 4:] = texts[1][None, :, None, None]
    tcl.encode = lambda _: TCLFeatures.of(planted, planted, tcl.options, (32, 32), (32, 32), (0, 0))
    with torch.no_grad():
        # As sharp as after training.
        tcl.masker.sim2mask.w.fill_(40.0)
        tcl.masker.sim2mask.b.fill_(-20.0)
    one = slice(index, index + 1)
    alone = Images(images.pixels[one], images.scenes[one], images.things[one], READER)
    found = list(grounded(tcl, tokenizer, alone))
    assert [(color, kind) for color, kind, _ in found] == things
    torch.testing.assert_close(torch.stack([mean for _, _, mean in found]), texts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.6), (0.5, 0.25, 0.25)])
def test_shares_that_cannot_be_averaged_are_noticed_first(shares) -> None:
    with pytest.raises(ValueError, match="shares"):
        dataclasses.replace(RECIPE.tcl_stage, shares=shares)


@pytest.mark.slow
def test_the_estimate_names_every_part() -> None:
    parts = list(estimate(short(RECIPE), "float32", seconds=0.1))
    assert [part.name for part in parts[2:]] == [*(phase.name for phase in RECIPE.clip_phases), *COPIES]
    assert [part.count for part in parts] == [300, 40, *[3] * (len(RECIPE.clip_phases) + len(COPIES))]
    assert all(part.seconds > 0 for part in parts)
