"""Text out of a target and, with it or not, a draft: one captured step replayed, tokens read one step behind.

GPU    | step 0 | step 1 | step 2 | ...         nothing waits for the host
host            | read 0 | read 1 | ...         each step's tokens arrive in pinned memory while the next one runs
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from . import draft as dflash
from .decode import Plan, autoregress, speculate
from .draft import Draft
from .graph import capture
from .sampling import Sampling, sampler
from .state import LONGEST, State, fresh
from .target import Target, prefill


@dataclass
class Stats:
    """AL is tokens / steps, the root counted."""

    prompt: int = 0
    tokens: int = 0
    steps: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    accepted: list[int] = field(default_factory=list)

    @property
    def accept_length(self) -> float:
        return self.tokens / max(self.steps, 1)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.decode_s, 1e-9)


class Generator:
    """Holds the state and the captured step; `stream` runs one prompt after another."""

    def __init__(
        self,
        target: Target,
        draft: Draft | None = None,
        plan: Plan | None = None,
        sampling: Sampling | None = None,
        context: int = 4096,
        kv: tuple[str, str] = ("f16", "f16"),
    ) -> None:
        self.target, self.draft = target, draft
        self.plan = plan or Plan("tree" if draft else "ar")
        self.sampling = sampling or Sampling()
        if self.plan.mode != "ar" and draft is None:
            raise ValueError(f"mode {self.plan.mode} needs a draft")
        if draft is not None and draft.config.captured != target.captured:
            raise ValueError(f"the draft reads layers {draft.config.captured}, the target records {target.captured}")
        self.device, self.context = target.norm.device, context
        self.state = self._empty(kv)
        self.random = torch.Generator(self.device)
        self.choose = sampler(self.sampling, target, self.state, self.random)
        self.step = capture(self._step, self.device, (self.random,))
        self.stats = Stats()

    def _empty(self, kv: tuple[str, str]) -> State:
        rings = dflash.rings(self.draft.config, self.device) if self.draft else ()
        dtype = self.target.do.precision.activations
        return fresh(self.target.config, self.context, self.device, dtype, kv, len(self.target.captured), rings=rings)

    def _step(self) -> None:
        if self.draft is None or self.plan.mode == "ar":
            autoregress(self.target, self.state, self.choose)
        else:
            propose = partial(dflash.forward, self.draft, self.target)
            speculate(self.target, propose, self.state, self.plan, self.choose)

    def stream(self, prompt: Sequence[int], limit: int, stops: Sequence[int] = ()) -> Iterator[list[int]]:
        """The tokens that follow the prompt, a few at a time, until one of `stops` (not given out) or `limit`."""
        if not prompt or len(prompt) + limit > self.context:
            raise ValueError(f"a prompt of {len(prompt)} and {limit} tokens do not fit the context of {self.context}")
        self.stats = stats = Stats(prompt=len(prompt))
        began = time.perf_counter()
        self.state.reset()
        self.random.manual_seed(self.sampling.seed)
        ids = torch.tensor(prompt, dtype=torch.int32, device=self.device)
        self.state.root.copy_(self.choose(prefill(self.target, self.state, ids), None))
        if self.draft is not None and self.plan.mode != "ar":
            dflash.absorb(self.draft, self.state, 0, len(prompt))
        self._wait()
        stats.prefill_s, began = time.perf_counter() - began, time.perf_counter()
        for emitted in self._steps():
            new = emitted[: limit - stats.tokens]
            ends = next((i for i, token in enumerate(new) if token in stops), None)
            stats.steps, stats.tokens = stats.steps + 1, stats.tokens + len(new[:ends])
            stats.accepted.append(len(emitted))
            stats.decode_s = time.perf_counter() - began
            yield new[:ends]
            if ends is not None or stats.tokens >= limit:
                self._wait()
                return

    def _steps(self) -> Iterator[list[int]]:
        """Step after step, and what each committed, read while the next one runs."""
        held = [torch.zeros(1 + LONGEST, dtype=torch.int32, pin_memory=self.device.type == "cuda") for _ in range(2)]
        arrived = [torch.cuda.Event() if self.device.type == "cuda" else None for _ in held]
        step = 0
        while True:
            self.step()
            held[step % 2].copy_(self.state.emitted, non_blocking=True)
            if (event := arrived[step % 2]) is not None:
                event.record()
            step += 1
            # a CPU has nothing to run meanwhile
            behind = 1 if self.device.type == "cuda" else 0
            if step > behind:
                index = (step - 1 - behind) % 2
                if (event := arrived[index]) is not None:
                    event.synchronize()
                count, *tokens = held[index].tolist()
                yield tokens[:count]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
