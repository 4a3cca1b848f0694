from __future__ import annotations

import threading
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tcl_core.caching import ByteBoundedCache
from tcl_core.errors import SettingsError
from tcl_core.methods.training_free.base import DenseFeatures
from tcl_core.refinement.pamr import PamrAffinity
from tcl_core.segmentation.features import FeatureCache, FeatureKey, ImageFeatures


def features(name: str, pixels: int, refined: bool = False) -> ImageFeatures:
    windows = DenseFeatures(torch.zeros(1, 1, 1, pixels + 1), (1, 1), (1, 1), (0, 0))
    affinity = PamrAffinity(torch.zeros(1, 48, 1, pixels)) if refined else None
    return ImageFeatures(windows, affinity, None, ((0, 0),), (1, 1), (1, 1), (1, 1), FeatureKey(name, "w", "s"))


def test_bytes_count_every_tensor() -> None:
    assert features("a", 10).nbytes == 4 * (10 + 1)
    assert features("a", 10, refined=True).nbytes == 4 * (10 + 1 + 480)


def test_feature_cache_keeps_finds_and_forgets() -> None:
    cache = FeatureCache(max_bytes=100)
    first, second, third = features("a", 9), features("b", 9), features("c", 14)
    assert cache.put(first.key, first) and cache.put(second.key, second)
    assert cache.get(first.key) is first and (cache.nbytes, len(cache)) == (80, 2)
    assert cache.put(third.key, third)
    assert second.key not in cache and first.key in cache and third.key in cache and cache.nbytes == 100
    assert cache.get(second.key) is None
    assert (cache.hits, cache.misses) == (1, 1)
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0) and cache.get(first.key) is None


def test_an_item_larger_than_the_bound_drives_nothing_out() -> None:
    cache = FeatureCache(max_bytes=100)
    small, large = features("a", 9), features("b", 1000)
    cache.put(small.key, small)
    assert not cache.put(large.key, large)
    assert small.key in cache and large.key not in cache


def test_a_key_is_replaced_not_counted_twice() -> None:
    cache = ByteBoundedCache[str, bytes](10, len)
    cache.put("a", b"123456")
    assert cache.put("a", b"12345678") and cache.nbytes == 8 and cache.get("a") == b"12345678"
    assert not cache.put("a", b"12345678901") and "a" not in cache and cache.nbytes == 0


def test_every_part_of_the_key_counts() -> None:
    cache = FeatureCache()
    item = features("a", 1)
    cache.put(FeatureKey("a", "w", "s"), item)
    for other in (FeatureKey("b", "w", "s"), FeatureKey("a", "v", "s"), FeatureKey("a", "w", "t")):
        assert cache.get(other) is None
    assert cache.get(FeatureKey("a", "w", "s")) is item


def test_negative_bound_is_an_error() -> None:
    with pytest.raises(SettingsError, match="-1 bytes"):
        FeatureCache(max_bytes=-1)


@given(
    st.integers(0, 30),
    st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 12)), max_size=60),
)
def test_agrees_with_a_plain_model(bound: int, steps: list[tuple[bool, int, int]]) -> None:
    cache = ByteBoundedCache[int, bytes](bound, len)
    model: OrderedDict[int, bytes] = OrderedDict()
    for is_put, key, size in steps:
        if is_put:
            value = bytes(size)
            model.pop(key, None)
            kept = size <= bound
            if kept:
                model[key] = value
                while sum(map(len, model.values())) > bound:
                    model.popitem(last=False)
            assert cache.put(key, value) == kept
        else:
            if key in model:
                model.move_to_end(key)
            assert cache.get(key) == model.get(key)
        assert cache.nbytes == sum(map(len, model.values())) <= bound
        assert len(cache) == len(model) and all(k in cache for k in model)


def test_many_threads_leave_the_count_right() -> None:
    cache = ByteBoundedCache[int, bytes](500, len)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(400):
                key = (seed * 7 + step * 13) % 40
                cache.put(key, bytes(key))
                found = cache.get((key + step) % 40)
                assert found is None or len(found) == (key + step) % 40
                assert cache.nbytes <= 500
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert cache.nbytes == sum(key for key in range(40) if key in cache)
