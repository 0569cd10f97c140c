"""Properties of kv_move."""

import pytest
import torch
from draftwood.kernels.kv_move import Config
from draftwood.kernels.kv_move import kv_move as kernel
from draftwood.lab.check import target
from draftwood.reference.kv_move import kv_move as reference
from hypothesis import given
from hypothesis import strategies as st

either = pytest.mark.parametrize("move", [reference, kernel], ids=["reference", "kernel"])


def numbered(Hkv: int, S: int, row: int) -> torch.Tensor:
    """A cache in which no two bytes in a row of heads and rows are the same pattern."""
    return (torch.arange(Hkv * S * row).reshape(Hkv, S, row) % 251).to(torch.uint8).to(target())


def i32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=target())


def moved(move, path: list[int], start: int, depth: int, S: int = 14, **extra):
    k, v = numbered(2, S, 36), numbered(2, S, 68)
    padded = i32(*path, *[-1] * (depth - len(path)))
    move(k, v, padded, i32(len(path)), i32(start), **extra)
    return k, v


@given(data=st.data())
@either
def test_every_row_is_what_a_copy_of_the_old_cache_says(move, data):
    nodes = data.draw(st.integers(1, 10))
    path = sorted(data.draw(st.sets(st.integers(1, nodes), max_size=nodes)) | {0})
    start = data.draw(st.integers(0, 3))
    for cache, row in zip(moved(move, path, start, 11), (36, 68), strict=True):
        old = numbered(2, 14, row)
        wanted = old.clone()
        for d, node in enumerate(path):
            wanted[:, start + d] = old[:, start + node]
        assert torch.equal(cache, wanted)


@either
def test_a_path_that_is_in_place_and_an_empty_one_change_nothing(move):
    for path in ([0, 1, 2], []):
        assert all(map(torch.equal, moved(move, path, 2, 4), (numbered(2, 14, 36), numbered(2, 14, 68))))


def test_bits_are_moved_whatever_they_mean():
    # NaN payloads and minus zero, as f16
    k = torch.tensor([0x7E01, 0x8000, 0xFC00, 0x0001] * 8, dtype=torch.uint16).view(torch.float16).to(target())
    cache = torch.stack((torch.zeros_like(k), k))[None].contiguous()
    kernel(cache, cache.clone(), i32(1), i32(1), i32(0))
    assert torch.equal(cache[0, 0].view(torch.int16), k.view(torch.int16))


@pytest.mark.parametrize("width", [32, 64, 256])
def test_the_width_of_a_program_does_not_matter(width):
    path, sound = [0, 2, 3, 7], moved(reference, [0, 2, 3, 7], 1, 5)
    assert all(map(torch.equal, moved(kernel, path, 1, 5, config=Config(BLOCK_C=width)), sound))


def test_caches_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="same Hkv and S"):
        kernel(numbered(2, 5, 36), numbered(2, 6, 36), i32(0), i32(1), i32(0))
    with pytest.raises(ValueError, match="one path"):
        kernel(numbered(2, 5, 36), numbered(2, 5, 36), i32(0), i32(1, 1), i32(0))
