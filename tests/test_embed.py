"""Laws of embed."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from draftwood.kernels.embed import Config, embed
from draftwood.reference import formats
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GOLDEN = Path(__file__).parent / "golden" / "tiny-qwen35-q4_k_m.gguf"


def table(name: str, rows: int, E: int) -> torch.Tensor:
    data = formats.draw(name, rows, E, torch.Generator().manual_seed(0))
    plain = formats.FORMATS[name].dtype
    return (data if plain is None else data.view(plain)).to(DEVICE)


def tokens(*ids: int) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.int32, device=DEVICE)


@given(ids=st.lists(st.integers(-3, 8), min_size=1, max_size=6), name=st.sampled_from(["q4_k", "q6_k", "f16"]))
def test_a_token_embeds_the_same_wherever_it_stands_and_unknown_ones_to_zero(ids, name):
    weight = table(name, 6, 256)
    rows = formats.dequantise(weight, name)
    want = torch.stack([rows[i] if 0 <= i < 6 else torch.zeros_like(rows[0]) for i in ids])
    assert torch.equal(embed(tokens(*ids), weight, name, torch.float32), want)


@pytest.mark.parametrize("block_c", [1, 2, 8])
def test_tiles_change_no_bit(block_c):
    weight = table("q4_0", 4, 1056)
    ids = tokens(3, 0, 2)
    want = embed(ids, weight, "q4_0", torch.float32)
    assert torch.equal(embed(ids, weight, "q4_0", torch.float32, config=Config(block_c)), want)


def test_rows_of_the_table_may_lie_apart():
    weight = table("q8_0", 4, 64)
    apart = torch.zeros(4, 80, dtype=torch.uint8, device=DEVICE)
    apart[:, :68] = weight
    ids = tokens(0, 3, 1)
    want = embed(ids, weight, "q8_0", torch.bfloat16)
    assert torch.equal(embed(ids, apart[:, :68], "q8_0", torch.bfloat16), want)


def test_the_golden_table_embeds_to_the_bits_of_gguf():
    tensor = next(t for t in GGUFReader(GOLDEN).tensors if t.name == "token_embd.weight")
    ids = [0, 511, 17, 256]
    data = torch.from_numpy(np.array(tensor.data)).to(DEVICE)
    got = embed(tokens(*ids), data, "q4_k", torch.float32).cpu().numpy()
    want = gguf.dequantize(tensor.data[ids], tensor.tensor_type)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


def test_what_is_not_supported_is_refused_with_its_value():
    weight = table("q4_k", 4, 256)
    for arguments, value in (
        ((tokens(1), weight, "q4_1", torch.float32), "q4_1"),
        ((tokens(1), weight, "tq3_0", torch.float32), "tq3_0"),
        ((tokens(1).long(), weight, "q4_k", torch.float32), "int64"),
        ((tokens(1), weight[:, :100], "q4_k", torch.float32), "100"),
    ):
        with pytest.raises(ValueError, match=value):
            embed(*arguments)
