"""The draft against DFlash said again in plain torch, with the whole context recomputed at every step: the rings, their
wrap, the windows and the rows appended must make no difference."""

import dataclasses
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from draftwood.models import draft, qwen35, state, target
from draftwood.models.arithmetic import PRECISIONS
from draftwood.models.synthetic import Weights
from draftwood.models.weights import Rows
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = torch.device("cpu")
TARGET = qwen35.Config(3, 64, 64, 97, 2, 1, 4, False, (True, False, True), D=32, Hk=2, K=16, V=16, rotary=8)
# three layers: sees all, slides, slides but sees its whole block
DRAFT = draft.Config(
    3, 64, 96, 4, 2, 32, 64, (0, 2), (0, 5, 5), (False, True, False), mask_token=90, theta=1e5, block=8
)
RING = 12


def named(c: draft.Config, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (0.15 if len(shape) == 2 else 0.2) + (len(shape) == 1)
        for name, shape in draft.tensors(c).items()
    }


@cache
def pair(impl: str = "reference") -> tuple[target.Target, draft.Draft]:
    model = target.assemble(
        TARGET, Weights(TARGET, lambda name, i, n: "f32", CPU), CPU, "f32", impl, captured=DRAFT.captured
    )
    weights = named(DRAFT)
    return model, draft.assemble(DRAFT, lambda name: Rows(weights[name], "f32"), CPU, PRECISIONS["f32"], impl)


def empty(ring: int = RING, c: draft.Config = DRAFT) -> state.State:
    # rings in f16: in bf16 a rounding would hide what is looked for
    return state.fresh(
        TARGET, 64, CPU, torch.float32, captured=2, ring=ring, rings=draft.rings(c, CPU, torch.float16, ring)
    )


# -- the restatement ---------------------------------------------------------------------------------------------------


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def turned(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """x: [n, heads, D] rotated as complex numbers x[i] + i x[i + D/2]."""
    half = x.shape[-1] // 2
    angle = positions[:, None].double() / theta ** (torch.arange(half) / half)
    z = (
        torch.complex(x[..., :half].double(), x[..., half:].double())
        * torch.polar(torch.ones_like(angle), angle)[:, None]
    )
    return torch.cat((z.real, z.imag), -1).float()


def dflash(
    c: draft.Config, w: dict[str, torch.Tensor], features: torch.Tensor, embedded: torch.Tensor, ring: int
) -> torch.Tensor:
    """features: [n, captured E] of every committed row; embedded: [block, E] -> [block, E] after the last norm."""
    n, T = len(features), len(embedded)
    context = norm(features @ w["dflash.fc.weight"].T, w["dflash.hidden_norm.weight"])
    x, at = embedded, torch.arange(n + T)
    for i in range(c.L):
        get = lambda name, i=i: w[f"blk.{i}.{name}.weight"]
        hn = norm(x, get("attn_norm"))
        both = torch.cat((context, hn))
        q = norm((hn @ get("attn_q").T).view(T, c.H, c.D), get("attn_q_norm"))
        k = norm((both @ get("attn_k").T).view(n + T, c.Hkv, c.D), get("attn_k_norm"))
        v = (both @ get("attn_v").T).view(n + T, c.Hkv, c.D)
        q, k = turned(q, at[n:], c.theta), turned(k, at, c.theta)
        seen = min(c.windows[i] or ring, ring)
        mask = torch.ones(T, n + T, dtype=torch.bool)
        mask[:, : max(0, n - seen)] = False
        if c.causal[i]:
            mask[:, n:] = torch.ones(T, T).tril().bool()
        k, v = (one.repeat_interleave(c.H // c.Hkv, 1) for one in (k, v))
        o = F.scaled_dot_product_attention(*(one.transpose(0, 1) for one in (q, k, v)), attn_mask=mask)
        x = x + o.transpose(0, 1).flatten(1) @ get("attn_output").T
        m = norm(x, get("ffn_norm"))
        x = x + (F.silu(m @ get("ffn_gate").T) * (m @ get("ffn_up").T)) @ get("ffn_down").T
    return norm(x, w["output_norm.weight"])


def restated(c: draft.Config, model: target.Target, seen: torch.Tensor, root: int, ring: int) -> torch.Tensor:
    """Logits of rows 1 .. block - 1: row i predicts the token at its own position, row 0 is the root itself."""
    table = model.embedding.data.float()
    embedded = table[torch.tensor([root, *[c.mask_token] * (c.block - 1)])]
    return dflash(c, named(c), seen, embedded, ring)[1:] @ model.head.data.float().T


def joined(held: state.State, features: torch.Tensor) -> None:
    """Commit rows of these features."""
    counts, tokens = held.counting[: len(features)], torch.zeros(len(features), dtype=torch.int32)
    trail, length = target.Trail(features=list(features.chunk(2, 1))), held.counting[len(features) : len(features) + 1]
    target.record(pair()[0], held, tokens, trail, counts, length, held.root)


def grow(held: state.State, rows: int, generator: torch.Generator, seen: torch.Tensor) -> torch.Tensor:
    """Commit rows of random features; all features so far."""
    new = torch.randn(rows, seen.shape[1], generator=generator).bfloat16()
    joined(held, new)
    return torch.cat((seen, new.float()))


# -- properties --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 30), st.lists(st.integers(1, 8), max_size=5), st.integers(0, 1000))
def test_the_draft_is_dflash_whatever_the_ring_has_been_through(prompt, steps, seed):
    model, drafter = pair()
    held, generator = empty(), torch.Generator().manual_seed(seed)
    seen = torch.zeros(0, 128)
    for part in [RING] * (prompt // RING) + [prompt % RING]:
        seen = grow(held, part, generator, seen) if part else seen
    draft.absorb(drafter, held, 0, prompt, chunk=7)
    for rows in [0, *steps]:
        seen = grow(held, rows, generator, seen) if rows else seen
        held.root.fill_(int(torch.randint(0, 97, (1,), generator=generator)))
        found = draft.forward(drafter, model, held)
        wanted = restated(DRAFT, model, seen, int(held.root), RING)
        assert torch.allclose(found, wanted, atol=5e-3, rtol=0), (found - wanted).abs().max()
        assert int(held.drafted) == len(seen)


def test_the_kernels_draft_as_the_references_do():
    generator = torch.Generator().manual_seed(3)
    held, seen = empty(), torch.zeros(0, 128)
    seen = grow(held, 10, generator, seen)
    model, drafter = pair("kernels")
    draft.absorb(drafter, held, 0, 6)
    held.root.fill_(11)
    assert torch.allclose(draft.forward(drafter, model, held), restated(DRAFT, model, seen, 11, RING), atol=5e-3)


@pytest.mark.parametrize("rows", [5, 6, 7, 12, 13, 20])
def test_a_prompt_absorbed_at_once_or_step_by_step_leaves_the_same_rings(rows):
    model, drafter = pair()
    states = []
    for at_once in (True, False):
        held, generator, seen = empty(), torch.Generator().manual_seed(1), torch.zeros(0, 128)
        for begin in range(0, rows, 3):
            seen = grow(held, min(3, rows - begin), generator, seen)
            if not at_once:
                draft.forward(drafter, model, held)
        if at_once:
            draft.absorb(drafter, held, 0, rows)
        held.root.fill_(5)
        states.append(draft.forward(drafter, model, held))
    assert torch.allclose(*states, atol=2e-3)


def test_a_sliding_layers_window_is_anchored_at_the_blocks_first_row():
    """All rows of a block see the same rows of the context: those behind the window change nothing, the first in it
    does."""
    model, drafter = pair()
    c = dataclasses.replace(DRAFT, windows=(5, 5, 5))
    drafter = dataclasses.replace(drafter, config=c)
    outs = []
    for changed in (None, 4, 5):
        held, generator = empty(c=c), torch.Generator().manual_seed(2)
        seen = torch.randn(10, 128, generator=generator)
        if changed is not None:
            seen[changed] += 1
        joined(held, seen)
        draft.absorb(drafter, held, 0, 10)
        outs.append(draft.forward(drafter, model, held))
    assert torch.equal(outs[0], outs[1])
    assert (outs[0] - outs[2]).abs().amax(1).min() > 1e-3


def test_a_causal_block_hides_later_rows_and_a_full_one_shows_them():
    assert draft.sliding(5, 2048) == ((2048, 2048, 2048, 2048, 0), (True, True, True, True, False))
    assert draft.full(2) == ((0, 0), (False, False))
    _, drafter = pair()
    assert [int(sees.sum()) for sees in drafter.sees] == [64, 36, 64]


@given(st.integers(1, 40), st.integers(1, 8))
@settings(max_examples=10)
def test_scratch_rows_of_a_block_are_never_taken_for_context(prompt, rows):
    """What lies in rings beyond the committed rows does not matter: filled with large numbers they change nothing."""
    model, drafter = pair()
    outs = []
    for dirt in (0.0, 50.0):
        held, generator, seen = empty(), torch.Generator().manual_seed(4), torch.zeros(0, 128)
        for ring in held.rings:
            ring.keys.fill_(dirt), ring.values.fill_(dirt)
        for begin in range(0, prompt, RING):
            seen = grow(held, min(RING, prompt - begin), generator, seen)
        draft.absorb(drafter, held, 0, prompt)
        draft.forward(drafter, model, held)
        grow(held, rows, generator, seen)
        outs.append(draft.forward(drafter, model, held))
    assert torch.equal(*outs)
