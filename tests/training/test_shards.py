"""The index of tar shards, and every kind of damage that shards are known to have."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_core.errors import SettingsError
from tcl_core.images import load_image
from tests.training.shards import Member, encoded, plain_shards, sample, write_shard
from training.data.shards import Filters, Shard, ShardSource, index_shard

GOOD = [member for number in range(3) for member in sample(number)]


def indexed(folder: Path, members: list[Member], filters: Filters | None = None) -> Shard:
    return index_shard(write_shard(folder / "00000.tar", members), filters or Filters())


def test_samples_are_those_of_tarfile(tmp_path: Path) -> None:
    paths = plain_shards(tmp_path)
    source = ShardSource(paths[::-1], folder=tmp_path / "index")
    expected = []
    for path in paths:
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                if member.name.endswith(".jpg"):
                    image, caption = (
                        archive.extractfile(name).read() for name in (member.name, member.name.replace(".jpg", ".txt"))
                    )
                    expected.append((image, caption.decode()))
    assert len(source) == len(expected) == 21 and list(source.groups) == [7, 5, 9]
    # Backwards, so that nothing hangs on where a file was read before.
    for index in reversed(range(21)):
        pair = source.read(index)
        assert (pair.image, pair.caption) == expected[index]
    assert source.report.dropped == {} and source.report.damaged == {}


def test_members_may_be_interleaved(tmp_path: Path) -> None:
    ends = (".jpg", ".json", ".txt")
    shuffled = [member for end in ends for member in GOOD if member[0].endswith(end)]
    assert len(indexed(tmp_path, shuffled).entries) == 3
    assert len(indexed(tmp_path, shuffled[::-1]).entries) == 3


def test_dots_in_names_are_part_of_them(tmp_path: Path) -> None:
    members = sample(0, name="a.b") + sample(1, name="a.c") + sample(2, name="folder.x/a")
    shard = indexed(tmp_path, members)
    assert len(shard.entries) == 3 and not shard.dropped


def test_long_names(tmp_path: Path) -> None:
    assert len(indexed(tmp_path, sample(0, name="n" * 180) + sample(1)).entries) == 2


def test_the_first_of_a_name_counts(tmp_path: Path) -> None:
    again = sample(7, name="000000001")
    shard = indexed(tmp_path, [*GOOD, *again])
    assert len(shard.entries) == 3 and shard.dropped == {"with a duplicate name": 1}
    entry = shard.entries[1]
    content = shard.path.read_bytes()[entry["image"] : entry["image"] + entry["image_size"]]
    assert content == GOOD[3][1] != again[0][1]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (sample(9)[:2], "without a caption"),
        (sample(9)[1:], "without an image"),
        (sample(9, caption=b""), "with an empty caption"),
        (sample(9, caption=b"  \n"), "with an empty caption"),
        (sample(9, caption=b"caf\xe9"), "with a caption that is not UTF-8"),
        (sample(9, image=b"<html>404</html>"), "with a file that is not an image"),
        (sample(9, image=b""), "with a file that is not an image"),
        (sample(9, image=encoded(9, (1, 1))), "with too short a side"),
        (sample(9, image=encoded(9, (2000, 3))), "with too short a side"),
        (sample(9, image=encoded(9, (2000, 30))), "with an extreme aspect ratio"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_samples_that_cannot_be_used(tmp_path: Path, bad: list[Member], reason: str, first: bool) -> None:
    shard = indexed(tmp_path, [*bad, *GOOD] if first else [*GOOD, *bad])
    assert len(shard.entries) == 3 and shard.dropped == {reason: 1} and not shard.damage


def test_filters_are_settings(tmp_path: Path) -> None:
    tiny = [*GOOD, *sample(3, image=encoded(3, (2, 1))), *sample(4, image=encoded(4, (64, 64)))]
    assert len(indexed(tmp_path, tiny, Filters(min_side=1)).entries) == 5
    assert indexed(tmp_path, tiny, Filters(min_side=1, max_pixels=2000)).dropped == {"with too many pixels": 1}


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("L", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG")]
)
def test_any_kind_of_image_becomes_rgb(tmp_path: Path, mode: str, kind: str) -> None:
    image = encoded(5, mode=mode, kind=kind)
    write_shard(tmp_path / "0.tar", sample(0, image=image))
    pair = ShardSource([tmp_path / "0.tar"], folder=tmp_path / "index").read(0)
    pixels = load_image(pair.image)
    assert pixels.shape == (32, 40, 3)
    assert np.array_equal(pixels, load_image(image))
    if mode in ("L", "P"):
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(image)).convert("RGB")))


def test_truncated_shards_give_what_is_before_their_end(tmp_path: Path) -> None:
    whole = write_shard(tmp_path / "whole.tar", GOOD)
    with tarfile.open(whole) as archive:
        members = archive.getmembers()
    content, last = whole.read_bytes(), members[-3]
    for number, length in enumerate(
        (last.offset_data + last.size // 2, members[-1].offset_data + 2, last.offset + 100, last.offset)
    ):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(content[:length])
        shard = index_shard(path, Filters())
        assert len(shard.entries) == 2 and shard.damage, length
    assert not index_shard(whole, Filters()).damage


def test_files_that_are_no_shards(tmp_path: Path) -> None:
    contents = {"empty": b"", "html": b"<html>" * 400, "zeros": bytes(10240)}
    for name, content in contents.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
    damage = {name: index_shard(tmp_path / f"{name}.tar", Filters()) for name in contents}
    assert all(not len(shard.entries) for shard in damage.values())
    assert [shard.damage for shard in damage.values()] == ["is empty", "is not a tar file", "has no samples"]


def test_garbage_in_the_middle_is_noticed(tmp_path: Path) -> None:
    whole = write_shard(tmp_path / "whole.tar", GOOD)
    with tarfile.open(whole) as archive:
        third = archive.getmembers()[3]
    content = bytearray(whole.read_bytes())
    content[third.offset : third.offset + 512] = b"\xff" * 512
    whole.write_bytes(content)
    shard = index_shard(whole, Filters())
    assert len(shard.entries) == 1 and "is damaged after 3 members" in shard.damage


def test_damage_is_reported_and_the_rest_used(tmp_path: Path) -> None:
    paths = plain_shards(tmp_path)
    paths[1].write_bytes(b"")
    paths[2].write_bytes(paths[2].read_bytes()[:5000])
    source = ShardSource(paths, folder=tmp_path / "index")
    assert len(source) == sum(source.groups) > 7 and source.groups[:2] == [7, 0]
    text = "\n".join(source.report.lines())
    assert "00001.tar: is empty" in text and "00002.tar: is truncated after" in text
    assert [source.read(index).caption for index in range(7)] == [f"a cat number {n}" for n in range(7)]


def test_the_index_is_kept_until_a_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = plain_shards(tmp_path)
    walked: list[str] = []

    def record(path: Path, filters: Filters) -> Shard:
        walked.append(path.name)
        return index_shard(path, filters)

    monkeypatch.setattr("training.data.shards.index_shard", record)
    first = ShardSource(paths, folder=tmp_path / "index")
    assert len(walked) == 3
    again = ShardSource(paths, folder=tmp_path / "index")
    assert len(walked) == 3 and again.identity() == first.identity()
    assert [again.read(n) for n in range(21)] == [first.read(n) for n in range(21)]
    write_shard(paths[1], sample(50))
    changed = ShardSource(paths, folder=tmp_path / "index")
    assert walked[3:] == ["00001.tar"] and changed.groups == [7, 1, 9] and changed.identity() != first.identity()
    # Other filters are another index, and a file that was cut is made anew.
    ShardSource(paths, Filters(min_side=1), folder=tmp_path / "index")
    assert len(walked) == 7
    for kept in (tmp_path / "index").glob("*.bin"):
        kept.write_bytes(kept.read_bytes()[:-1])
    ShardSource(paths, folder=tmp_path / "index")
    assert len(walked) == 10


def test_a_shard_that_is_replaced_during_training(tmp_path: Path) -> None:
    (path,) = plain_shards(tmp_path, (4,))
    source = ShardSource([path], folder=tmp_path / "index")
    write_shard(path, sample(8))
    os.utime(path, ns=(1, 1))
    with pytest.raises(SettingsError, match="00000.tar: was replaced"):
        source.read(0)


def test_several_processes_index_the_same(tmp_path: Path) -> None:
    paths = plain_shards(tmp_path, (2, 3))
    seen: list[tuple[int, int]] = []
    many = ShardSource(paths, folder=tmp_path / "a", workers=2, progress=lambda *at: seen.append(at))
    one = ShardSource(paths, folder=tmp_path / "b")
    assert [many.read(n) for n in range(5)] == [one.read(n) for n in range(5)] and seen == [(1, 2), (2, 2)]


def test_missing_shards_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no shards"):
        ShardSource([])
    with pytest.raises(SettingsError, match="gone.tar: cannot be read"):
        ShardSource([tmp_path / "gone.tar"], folder=tmp_path)
