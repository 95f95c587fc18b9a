from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.layers.kv_cache import IndexedKVCache, KVCache, RollingKVCache, StaticKVCache


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_written_positions_are_read_back_in_order(portions: list[int]):
    cache = KVCache.reserve((2, 1, 3, sum(portions), 4), torch.device("cpu"))
    written = torch.randn(2, 1, 3, sum(portions), 4, generator=torch.Generator().manual_seed(0))
    for portion in portions:
        span = slice(cache.length, cache.length + portion)
        for layer in range(2):
            k, v = cache.append(layer, written[layer, :, :, span], -written[layer, :, :, span])
            assert torch.equal(k, written[layer, :, :, : span.stop]) and torch.equal(v, -k)
        cache.advance(portion)
    assert cache.length == sum(portions)


def test_a_full_cache_raises():
    cache = KVCache.reserve((1, 1, 1, 2, 4), torch.device("cpu"))
    with pytest.raises(ValueError, match="2 positions, 3 are needed"):
        cache.append(0, torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))


def test_an_indexed_cache_overwrites_the_chosen_positions():
    cache = IndexedKVCache.reserve((1, 2, 3, 4, 5), torch.device("cpu"))
    cache.positions = torch.arange(4).expand(2, -1)
    first, second = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 2, 5)
    k, v = cache.append(0, first, -first)
    assert torch.equal(k, first) and torch.equal(v, -first)
    cache.positions = torch.tensor([[3, 0], [1, 2]])
    k, v = cache.append(0, second, -second)
    expected = first.clone()
    expected[0, :, [3, 0]], expected[1, :, [1, 2]] = second[0], second[1]
    assert torch.equal(k, expected) and torch.equal(v, -expected)


@given(window=st.integers(1, 5), keeps_first=st.booleans(), count=st.integers(1, 20))
def test_a_rolling_cache_holds_the_latest_positions_and_the_first(window: int, keeps_first: bool, count: int):
    cache = RollingKVCache.rolling((1, 1, 1, 1), window, keeps_first, torch.device("cpu"))
    for position in range(count):
        cache.aim(1)
        value = torch.full((1, 1, 1, 1), float(position))
        keys, _ = cache.append(0, value, value)
        cache.advance(1)
    expected = set(range(max(0, count - window), count)) | ({0} if keeps_first else set())
    held = {int(p): float(k) for p, k in zip(cache.held(1), keys.flatten(), strict=True) if p >= 0}
    assert held == {p: float(p) for p in expected}
    later = RollingKVCache.rolling((1, 1, 1, 1), window, keeps_first, torch.device("cpu"))
    for position in sorted(expected):
        later.put(position, *cache.copy_of(position))
    assert torch.equal(later.keys, cache.keys) and torch.equal(later.held(1), cache.held(1))
    assert later.length == cache.length


def test_a_rolling_cache_takes_one_position_at_a_time():
    cache = RollingKVCache.rolling((1, 1, 1, 1), 2, False, torch.device("cpu"))
    with pytest.raises(ValueError, match="one position at a time, found 2"):
        cache.aim(2)


def caches() -> list[KVCache]:
    """One of each kind, aimed at its first position."""
    shape, device = (1, 1, 1, 4, 2), torch.device("cpu")
    every: list[KVCache] = [
        KVCache.reserve(shape, device),
        replace(IndexedKVCache.reserve(shape, device), positions=torch.zeros(1, 1, dtype=torch.int64)),
        StaticKVCache.reserve(shape, device),
        RollingKVCache.rolling((1, 1, 1, 2), 4, False, device),
    ]
    for cache in every:
        cache.aim(1)
    return every


@pytest.mark.parametrize("cache", caches(), ids=lambda cache: type(cache).__name__)
def test_keys_of_another_precision_are_converted(cache: KVCache):
    new = torch.full((1, 1, 1, 2), 0.5, dtype=torch.bfloat16)  # as autocast gives them
    keys, values = cache.append(0, new, new)
    assert keys.dtype == values.dtype == torch.float32
    assert (keys[:, :, 0] == 0.5).all()
