"""Order, tables, augmentation and batches."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tcl_core.errors import SettingsError
from tcl_core.methods.tcl import TCL
from tests.training.shards import encoded, plain_shards, sample, write_shard
from training.config import Augmentation
from training.data.augment import Transform
from training.data.loader import Batches, PairDataset
from training.data.order import Order
from training.data.shards import ShardSource
from training.data.source import JoinedSource, Pair, Source
from training.data.tables import coco_captions, table

PLAIN = Augmentation(size=32, scale=(0.5, 1.0))
STRONG = Augmentation(size=32, auto_augment="rand-m9-mstd0.5-inc1", erase=0.5)


# -- order ------------------------------------------------------------------------------------------------------------


def test_an_epoch_holds_each_pair_once_but_the_rest() -> None:
    order = Order([10, 7, 9, 4, 11], batch=6, seed=3, block=2)
    epochs = []
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        shown = [pair for step in steps for pair in order.pairs(step)]
        assert len(shown) == len(set(shown)) == 36 and set(shown) <= set(range(41))
        epochs.append(shown)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({tuple(sorted(epoch)) for epoch in epochs}) > 1, "the same pairs are left out every time"


def test_order_depends_on_seed_epoch_and_step_alone() -> None:
    groups = [10, 7, 9, 4, 11]
    order = Order(groups, batch=6, seed=3, block=2)
    expected = {step: order.pairs(step) for step in range(12)}
    # Asked backwards and from elsewhere, as after a restart.
    assert all(Order(groups, 6, 3, 2).pairs(step) == expected[step] for step in (11, 4, 0))
    assert Order(groups, 6, 4, 2).pairs(0) != expected[0]


def test_pairs_of_a_batch_come_from_several_groups() -> None:
    order = Order([100] * 16, batch=32, seed=0, block=8)
    assert np.mean([len({pair // 100 for pair in order.pairs(step)}) for step in range(10)]) > 5


def test_what_takes_the_place_of_an_unreadable_pair_is_in_no_other_place() -> None:
    order = Order([50], batch=10, seed=0)
    for step in range(5):
        for attempt in (1, 2, 3):
            assert order.pair(step, 4, attempt) not in order.pairs(step)
    assert order.pair(0, 4, 1) == order.pair(1, 4)


@pytest.mark.parametrize("groups", [[6], [12], [13], [7, 11]])
def test_all_pairs_are_tried_before_giving_up(groups: list[int]) -> None:
    """Also where an epoch is a batch or two, in which places repeat themselves."""
    order = Order(groups, batch=6, seed=0)
    for step, place in ((0, 0), (0, 5), (1, 3)):
        tried = [order.pair(step, place, attempt) for attempt in range(sum(groups))]
        assert set(tried) == set(range(sum(groups)))
        assert tried[0] in order.pairs(step)


def test_an_order_can_be_sent_to_another_process() -> None:
    order = Order([10, 7, 9], batch=6, seed=3)
    again = pickle.loads(pickle.dumps(order))
    assert [again.pairs(step) for step in range(6)] == [order.pairs(step) for step in range(6)]


def test_too_few_pairs() -> None:
    with pytest.raises(SettingsError, match="are 5 usable pairs.*fewer than the batch of 6; .* a batch of at most 5"):
        Order([2, 3], batch=6, seed=0)
    with pytest.raises(SettingsError, match=r"is 1 usable pair of .*fewer than the batch of 6; add data\.$"):
        Order([1], batch=6, seed=0)


# -- tables -----------------------------------------------------------------------------------------------------------


def images(folder: Path, count: int = 3) -> None:
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(encoded(number))


@pytest.mark.parametrize(("name", "separator"), [("pairs.csv", ","), ("pairs.tsv", "\t")])
def test_tables(tmp_path: Path, name: str, separator: str) -> None:
    images(tmp_path)
    rows = [
        ("filepath", "title"),
        ("0.jpg", '"a cat, a dog"'),
        ("1.jpg", ""),
        ("9.jpg", "gone"),
        ("2.jpg", "caf\u00e9"),
    ]
    text = "".join(separator.join(row) + "\n" for row in rows) + "\n"
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode() + f"0.jpg{separator}caf".encode() + b"\xe9\n")
    source = table(tmp_path / name)
    assert [source.read(n).caption for n in range(len(source))] == ["a cat, a dog", "caf\u00e9"]
    assert source.read(1).image == tmp_path / "2.jpg"
    reasons = {"with an empty caption": 1, "without an image": 1, "with a caption that is not UTF-8": 1}
    assert source.report.dropped == reasons
    assert f"1 without an image (such as {tmp_path / '9.jpg'})" in source.report.lines()[1]


def test_tables_of_spreadsheets(tmp_path: Path) -> None:
    """Semicolons where commas are decimal points, and rows with an empty cell."""
    images(tmp_path)
    path = tmp_path / "pairs.csv"
    path.write_text("image;caption\n0.jpg;a cat, a dog\n;no image\n\n1.jpg\n")
    source = table(path)
    assert [source.read(n).caption for n in range(len(source))] == ["a cat, a dog"]
    assert source.report.dropped == {"without an image": 1, "with an empty caption": 1}
    path.write_bytes("image,caption\n0.jpg,a cat\n".encode("utf-16"))
    with pytest.raises(SettingsError, match="pairs.csv: is not UTF-8; save it as CSV"):
        table(path)


def test_columns_of_tables(tmp_path: Path) -> None:
    images(tmp_path)
    path = tmp_path / "pairs.csv"
    path.write_text("Photo,Words\n0.jpg,a cat\n")
    assert len(table(path, "Photo", "Words")) == 1
    with pytest.raises(
        SettingsError, match=r"pairs.csv: has no image column \(image, .*columns are: Photo, Words; .*--image-column"
    ):
        table(path)
    with pytest.raises(SettingsError, match="has no column 'Text'"):
        table(path, "Photo", "Text")
    with pytest.raises(SettingsError, match="cannot be read"):
        table(tmp_path / "gone.csv")


def test_coco_captions(tmp_path: Path) -> None:
    images(tmp_path)
    content = {
        "images": [{"id": 7, "file_name": "0.jpg"}, {"id": 8, "file_name": "1.jpg"}],
        "annotations": [
            {"image_id": 8, "caption": "a dog"},
            {"image_id": 7, "caption": "a cat"},
            {"image_id": 7, "caption": "one cat"},
            {"image_id": 9, "caption": "of no image"},
        ],
    }
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content))
    source = coco_captions(path, tmp_path)
    pairs = [(Path(source.read(n).image).name, source.read(n).caption) for n in range(3)]
    assert pairs == [("1.jpg", "a dog"), ("0.jpg", "a cat"), ("0.jpg", "one cat")]
    assert source.report.dropped == {"without an image": 1}
    path.write_text("{}")
    with pytest.raises(SettingsError, match="not a file of COCO captions"):
        coco_captions(path, tmp_path)


def test_joined_sources(tmp_path: Path) -> None:
    images(tmp_path)
    (tmp_path / "pairs.csv").write_text("image,caption\n0.jpg,first\n1.jpg,second\n")
    shards = ShardSource(plain_shards(tmp_path, (2, 1)), folder=tmp_path / "index")
    joined = JoinedSource([table(tmp_path / "pairs.csv"), shards])
    captions = [joined.read(n).caption for n in range(len(joined))]
    assert captions == ["first", "second", "a cat number 0", "a cat number 1", "a cat number 2"]
    assert joined.groups == [2, 2, 1] and joined.report.pairs == 5 and joined.report.files == 3


# -- augmentation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [PLAIN, STRONG])
def test_augmentation_repeats_for_a_seed(settings: Augmentation) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    transform = Transform(settings)
    torch.manual_seed(5)
    expected_after = torch.rand(1)
    torch.manual_seed(5)
    first, other = transform(image, 1), transform(image, 2)
    assert torch.equal(torch.rand(1), expected_after), "the process' own randomness was touched"
    assert torch.equal(first, Transform(settings)(image, 1)) and not torch.equal(first, other)
    assert first.shape == (3, 32, 32) and first.dtype == torch.float32


def test_normalization_alone() -> None:
    settings = Augmentation(size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    image = np.full((16, 16, 3), 128, np.uint8)
    found = Transform(settings)(image, 0)
    expected = (128 / 255 - np.array(settings.mean)) / np.array(settings.std)
    assert np.allclose(found.mean(dim=(1, 2)).numpy(), expected, atol=1e-5)


@pytest.mark.slow
def test_the_papers_augmentation_acts_as_often_as_it_says() -> None:
    """Flips and erasing, counted on an image whose halves differ."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 255
    flips = Transform(Augmentation(size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0)))
    left_bright = [bool(flips(image, seed)[0, 0, 0] > flips(image, seed)[0, 0, -1]) for seed in range(300)]
    assert np.mean(left_bright) == pytest.approx(0.5, abs=0.1)
    erase = Transform(Augmentation(size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, erase=0.25))
    touched = [len(erase(image, seed).unique()) > 6 for seed in range(300)]
    assert np.mean(touched) == pytest.approx(0.25, abs=0.08)


def test_unknown_policies_are_errors() -> None:
    with pytest.raises(SettingsError, match="'shuffle-m9' is not a policy"):
        Transform(Augmentation(auto_augment="shuffle-m9"))


# -- batches ----------------------------------------------------------------------------------------------------------


def batches(
    source: Source, rank: int = 0, processes: int = 1, start: int = 0, workers: int = 0, steps: int = 4
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    method = TCL.example()
    dataset = PairDataset(source, Order(source.groups, 6, seed=1), Transform(PLAIN), method, seed=1)
    found = Batches(dataset, method, 6, rank, processes, start, steps, workers)
    result = [(batch.images, batch.tokens) for batch in found]
    assert found.waited > 0
    return result


@pytest.mark.slow
def test_batches_do_not_depend_on_workers_processes_and_restarts(tmp_path: Path) -> None:
    source = ShardSource(plain_shards(tmp_path), folder=tmp_path / "index")
    expected = batches(source)
    assert len(expected) == 4
    for images, tokens in expected:
        assert images.shape == (6, 3, 32, 32) and len(tokens) == 6

    def same(found: list[tuple[torch.Tensor, torch.Tensor]], wanted: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
        return len(found) == len(wanted) and all(
            torch.equal(a, b)
            for mine, other in zip(found, wanted, strict=True)
            for a, b in zip(mine, other, strict=True)
        )

    assert same(batches(source, workers=2), expected)
    assert same(batches(source, start=2, workers=1), expected[2:])
    for processes in (2, 3):
        parts = [batches(source, rank, processes) for rank in range(processes)]
        joined = [tuple(torch.cat(pieces) for pieces in zip(*step, strict=True)) for step in zip(*parts, strict=True)]
        assert same(joined, expected)


@pytest.mark.slow
def test_workers_that_are_sent_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows."""
    source = ShardSource(plain_shards(tmp_path), folder=tmp_path / "index")
    expected = batches(source, steps=2)
    monkeypatch.setattr("training.data.loader.sys", types.SimpleNamespace(platform="darwin"))
    found = batches(source, workers=1, steps=2)
    for mine, wanted in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, wanted, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, workers: int) -> None:
    """PyTorch would hand on the traceback of the worker as the message."""
    (path,) = plain_shards(tmp_path, (7,))
    source = ShardSource([path], folder=tmp_path / "index")
    write_shard(path, sample(8))
    with pytest.raises(SettingsError, match=r"^\S*00000.tar: was replaced during training[^\n]*$"):
        batches(source, workers=workers)
    path.unlink()
    with pytest.raises(SettingsError, match=r"^\S*00000.tar: cannot be read: No such file[^\n]*$"):
        batches(source, workers=workers)


class Killed(JoinedSource):
    """Ends the process that reads from it, as the kernel does where memory runs out."""

    def read(self, index: int) -> Pair:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


def test_a_worker_that_is_killed(tmp_path: Path) -> None:
    source = Killed([ShardSource(plain_shards(tmp_path), folder=tmp_path / "index")])
    with pytest.raises(SettingsError, match="ended unexpectedly.*fewer --workers"):
        batches(source, workers=1)


def test_images_that_do_not_decode_are_replaced(tmp_path: Path) -> None:
    """Their headers are fine, so the index keeps them; all processes still see whole batches."""
    broken = {3, 8}
    members = [
        member
        for number in range(18)
        for member in sample(number, image=encoded(number)[:-100] if number in broken else None)
    ]
    source = ShardSource([write_shard(tmp_path / "0.tar", members)], folder=tmp_path / "index")
    assert len(source) == 18
    method, order = TCL.example(), Order(source.groups, 6, seed=1)
    dataset = PairDataset(source, order, Transform(PLAIN), method, seed=1)
    found = Batches(dataset, method, 6, 0, 1, 0, 3)
    assert [len(batch.images) for batch in found] == [6, 6, 6]
    assert found.replaced == 2
    for step in range(3):
        for place in range(6):
            wanted = next(n for attempt in range(9) if (n := order.pair(step, place, attempt)) not in broken)
            seed = int(np.random.default_rng([1, step, place]).integers(2**62))
            pixels = np.asarray(Image.open(io.BytesIO(encoded(wanted))).convert("RGB"))
            assert torch.equal(dataset[step, place]["image"], Transform(PLAIN)(pixels, seed))


def test_data_without_any_image_is_an_error(tmp_path: Path) -> None:
    members = [member for number in range(6) for member in sample(number, image=encoded(number)[:-100])]
    source = ShardSource([write_shard(tmp_path / "0.tar", members)], folder=tmp_path / "index")
    with pytest.raises(SettingsError, match="100 pairs in a row cannot be used.*0.tar"):
        batches(source)
