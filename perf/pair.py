"""What the small pair shows: accept lengths, ranks, what caches, weights and rollbacks cost, and that nothing is lost.

    modes      tokens a step and a second: autoregressive, chain, trees of several budgets
    ranks      the target's token among the draft's candidates, by depth, and tokens a step of every size of tree,
               foreseen without decoding: what `draftwood budget` reads
    caches     perplexity and accept length by the formats of keys and values
    weights    the same by the formats of the target's and the draft's weights
    rollback   the same by the strategy that moves states down the accepted path
    lossless   greedy chain and tree against the autoregressive text, up to ties of the target's logits

Prompts and texts are of the modules held out. AL is tokens / steps, the root counted.
"""

import itertools
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..autotune import timer
from ..models import decode, draft_files, export, gguf, qwen35, shipped, target_files, text
from ..models import draft as dflash
from ..models import target as qwen
from ..models.arithmetic import PRECISIONS, Precision
from ..models.decode import MODES, Plan
from ..models.draft import Draft
from ..models.generate import Generator
from ..models.state import State, fresh
from ..models.target import Target
from ..models.train import corpus
from ..reference.ddtree import grow
from ..reference.formats import dequantise
from ..reference.tree_gdn import STRATEGIES
from .bench import RESULTS

STUDIES = ("modes", "ranks", "caches", "weights", "rollback", "lossless")
BUDGETS = (8, 16, 22, 40, 64, 128, 256)
FORMATS = ("f16", "q8_0", "q4_0", "tq3_0")
# of logits, between rows run alone and the same rows in a batch; per arithmetic
TIES = {"reference": 2e-3, "kernels": 0.05}
BRANCHES = 8


@dataclass(frozen=True)
class Setting:
    """folder: of the pair; prompts of `given` tokens, `count` of them, each continued by `tokens`."""

    device: torch.device
    folder: Path = shipped.FOLDER
    count: int = 8
    given: int = 128
    tokens: int = 128
    impl: str = "reference"

    @property
    def precision(self) -> str:
        return "exact" if self.impl == "kernels" else "f32"


def load_target(setting: Setting, file: Path, captured: tuple[int, ...]) -> Target:
    opened = gguf.load(file)
    repack = setting.impl == "kernels"
    return target_files.load(opened, setting.device, setting.precision, setting.impl, captured, repack)


def load_draft(setting: Setting, path: Path) -> Draft:
    numbers = Precision(torch.bfloat16, torch.bfloat16) if setting.impl == "kernels" else PRECISIONS["f32"]
    return draft_files.load(path, setting.device, numbers, setting.impl)


def held_out(setting: Setting) -> list[int]:
    """The tokens of the modules held out, one text after another."""
    _, texts = corpus.divided(corpus.standard_library(modules=corpus.held_out()))
    words = text.load(gguf.load(shipped.target(folder=setting.folder)))
    end = min(words.ends)
    return [token for one in texts for token in (*words.encode(one), end)]


def spread(tokens: Sequence[int], count: int, length: int) -> list[list[int]]:
    """`count` stretches of `length`, evenly from the first token to the last."""
    gap = (len(tokens) - length) / max(count - 1, 1)
    return [list(tokens[round(i * gap) :][:length]) for i in range(count)]


def length_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without times: those are of the study modes alone, which runs by itself."""
    return {"accept_length": row["accept_length"]}


class Bench:
    """The pair opened, and what the studies ask of it."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.text = setting, held_out(setting)
        self.draft = load_draft(setting, shipped.draft(folder=setting.folder))
        self.captured = self.draft.config.captured
        self.target = load_target(setting, shipped.target(folder=setting.folder), self.captured)
        self.prompts = spread(self.text, setting.count, setting.given)

    # -- accept lengths ------------------------------------------------------------------------------------------------

    def decoded(
        self,
        plan: Plan,
        kv: tuple[str, str] = ("f16", "f16"),
        target: Target | None = None,
        draft: Draft | None = None,
        prompts: Sequence[list[int]] | None = None,
    ) -> tuple[dict[str, Any], list[list[int]]]:
        """Tokens a step and a second over all prompts, and what was written."""
        s, texts, tokens, steps, seconds = self.setting, list[list[int]](), 0, 0, 0.0
        drafter = None if plan.mode == "ar" else draft or self.draft
        model = target or self.target
        if drafter is None:
            model = replace(model, captured=())
        generator = Generator(model, drafter, plan, context=s.given + s.tokens, kv=kv)
        for prompt in prompts or self.prompts:
            texts.append([token for part in generator.stream(prompt, s.tokens) for token in part])
            stats = generator.stats
            tokens, steps, seconds = tokens + stats.tokens, steps + stats.steps, seconds + stats.decode_s
        row = {"accept_length": round(tokens / steps, 3), "tokens_per_s": round(tokens / seconds, 1)}
        return row | {"ms_a_step": round(1e3 * seconds / steps, 3)}, texts

    def modes(self, budgets: Sequence[int] = BUDGETS) -> Iterator[dict[str, Any]]:
        plans = [Plan("ar"), decode.chain(self.draft.config.block), *(Plan("tree", budget=n) for n in budgets)]
        for plan in plans:
            row, _ = self.decoded(plan)
            yield {"mode": plan.mode, "budget": 0 if plan.mode == "ar" else plan.budget, **row}

    def ranks(self) -> Iterator[dict[str, Any]]:
        """hits[d][r]: steps in which the target's token at depth d is candidate r; offers[d][r]: steps in which the
        path to depth d was among the candidates. tree and chain: tokens a step by size, each step's own tree grown."""
        L, largest, steps = self.draft.config.block - 1, max(BUDGETS), 0
        hits, offers = ([[0] * BRANCHES for _ in range(L)] for _ in range(2))
        kept = {"tree": [0] * (largest + 1), "chain": [0] * (L + 1)}
        for prompt in self.prompts:
            for (logprobs, candidates), right in self._proposals(prompt):
                path: tuple[int, ...] = ()
                for d in range(min(L, len(right))):
                    found = candidates[d].index(right[d]) if right[d] in candidates[d] else -1
                    offers[d] = [n + 1 for n in offers[d]]
                    if found < 0:
                        break
                    hits[d][found] += 1
                    path += (found,)
                steps += 1
                for kind, limit in (("tree", largest), ("chain", L)):
                    grown = grow(logprobs[:, : 1 if kind == "chain" else BRANCHES], limit, chain_seed=True)
                    for size, (node, _) in enumerate(grown, start=1):
                        kept[kind][size] += node == path[: len(node)]
        curves = {
            kind: {size: round(1 + total / steps, 4) for size, total in enumerate(itertools.accumulate(counts)) if size}
            for kind, counts in kept.items()
        }
        name = "draftwood pair, held-out modules"
        yield {"name": name, "source": "draftwood pair ranks", "hits": hits, "offers": offers, **curves}

    def _proposals(self, prompt: list[int]) -> list[tuple[tuple[torch.Tensor, list[list[int]]], list[int]]]:
        """Of every step of a tree's walk: the draft's candidates by depth, their log-probabilities and their tokens,
        and what the target then wrote."""
        s, begins, asked = self.setting, list[int](), list[tuple[torch.Tensor, list[list[int]]]]()
        state, choose = self._begun(prompt, s.tokens), decode.greedy(self.target)

        def propose(held: State) -> torch.Tensor:
            guesses = dflash.forward(self.draft, self.target, held)
            begins.append(int(held.start))
            logprobs, ids = guesses.float().log_softmax(-1).topk(BRANCHES, -1)
            asked.append((logprobs.cpu(), ids.tolist()))
            return guesses

        while int(state.start) < s.given + s.tokens:
            decode.speculate(self.target, propose, state, Plan("tree"), choose)
        written = state.tokens[: int(state.start)].tolist()
        # beyond the last step's commit the text is not known
        return [(one, written[begin + 1 :]) for begin, one in zip(begins[:-1], asked[:-1], strict=True)]

    def _begun(self, prompt: list[int], room: int) -> State:
        s, c = self.setting, self.target.config
        rings = dflash.rings(self.draft.config, s.device)
        dtype = self.target.do.precision.activations
        state = fresh(c, len(prompt) + room, s.device, dtype, ("f16", "f16"), len(self.captured), rings=rings)
        ids = torch.tensor(prompt, dtype=torch.int32, device=s.device)
        state.root.copy_(decode.greedy(self.target)(qwen.prefill(self.target, state, ids), None))
        dflash.absorb(self.draft, state, 0, len(prompt))
        return state

    # -- perplexity ----------------------------------------------------------------------------------------------------

    def perplexity(self, kv: tuple[str, str], length: int, texts: int, target: Target | None = None) -> float:
        """Of held-out stretches of `length` tokens, all of them but each first one."""
        model, s, total = target or self.target, self.setting, 0.0
        state = fresh(model.config, length, s.device, model.do.precision.activations, kv)
        model = replace(model, captured=())
        for part in spread(self.text, texts, length):
            ids = torch.tensor(part, dtype=torch.int32, device=s.device)
            state.reset()
            hidden, _ = qwen.forward(model, state, qwen.line(state, ids))
            logits = qwen.logits(model, hidden[:-1]).float()
            total += torch.nn.functional.cross_entropy(logits, ids[1:].long()).item()
        return round(math.exp(total / texts), 4)

    def caches(self, lengths: Sequence[int], texts: int = 2) -> Iterator[dict[str, Any]]:
        pairs = [(one, one) for one in FORMATS]
        pairs += [pair for one in FORMATS[1:] for pair in ((one, "f16"), ("f16", one))]
        for kv in pairs:
            row, _ = self.decoded(Plan("tree"), kv)
            found = {f"perplexity_{length}": self.perplexity(kv, length, texts) for length in lengths}
            yield {"keys": kv[0], "values": kv[1], **found, **length_of(row)}

    def weights(self, length: int, texts: int = 2) -> Iterator[dict[str, Any]]:
        """Files that do not ship are made on the way from the F16 target and the BF16 draft."""
        s = self.setting
        with tempfile.TemporaryDirectory() as made:
            for name, file in self._targets(Path(made)):
                model = load_target(s, file, self.captured)
                row, _ = self.decoded(Plan("tree"), target=model)
                found = self.perplexity(("f16", "f16"), length, texts, model)
                size = file.stat().st_size
                yield {"target": name, "draft": "bf16", "bytes": size, f"perplexity_{length}": found, **length_of(row)}
            for name, file in self._drafts(Path(made)):
                row, _ = self.decoded(Plan("tree"), draft=load_draft(s, file))
                yield {"target": "f16", "draft": name, "bytes": file.stat().st_size, **length_of(row)}

    def _targets(self, folder: Path) -> Iterator[tuple[str, Path]]:
        whole = gguf.load(shipped.target(folder=self.setting.folder))
        c = qwen35.config(whole)
        held = {name: dequantise(whole.read(name), entry.format) for name, entry in whole.entries.items()}
        mixes = {"q8_0": export.all_in("q8_0"), "q4_k": export.mixed(export.all_in("q4_k"))}
        yield "f16", shipped.target(folder=self.setting.folder)
        for name, mix in mixes.items():
            export.target(folder / f"{name}.gguf", c, held, {}, name, mix, "q8_0")
            yield name, folder / f"{name}.gguf"
        yield "q4_k_m", shipped.target("q4_k_m", self.setting.folder)

    def _drafts(self, folder: Path) -> Iterator[tuple[str, Path]]:
        from ..models import safetensors

        checkpoint = safetensors.load(shipped.draft(folder=self.setting.folder))
        c = self.draft.config
        held = {name: checkpoint.read(draft_files.hugging_face(name)).float() for name in dflash.tensors(c)}
        yield "q8_0", shipped.draft("q8_0", self.setting.folder)
        export.draft_gguf(folder / "draft-q4_k.gguf", c, held, "q4_k", export.all_in("q4_k"), "q4_k_m")
        yield "q4_k", folder / "draft-q4_k.gguf"

    def rollback(self, length: int) -> Iterator[dict[str, Any]]:
        """Accept length with each strategy; perplexity of a text whose every token went through trees and commits."""
        for strategy in STRATEGIES:
            row, _ = self.decoded(Plan("tree", strategy=strategy))
            yield {"strategy": strategy, f"perplexity_{length}": self.committed(strategy, length), **length_of(row)}

    def committed(self, strategy: str, length: int) -> float:
        """Perplexity of a text that a draft knows: each step gets its next tokens right, a few of them, and then errs;
        the target is told what to choose, and how likely it found that is noted."""
        model, s = replace(self.target, captured=()), self.setting
        state = fresh(model.config, length, s.device, model.do.precision.activations)
        ids = torch.tensor(spread(self.text, 1, length + 32)[0], device=s.device)
        random, right, losses = torch.Generator().manual_seed(0), 0, list[torch.Tensor]()

        def propose(held: State) -> torch.Tensor:
            nonlocal right
            right = int(torch.randint(15, (1,), generator=random))
            following = ids[int(held.start) + 1 :][:15, None]
            guesses = torch.randn(15, model.config.vocab, generator=random).to(s.device)
            known = torch.where(torch.arange(15, device=s.device) < right, 20.0, -20.0)
            guesses.scatter_(1, following, known[:, None])
            return guesses

        def choose(logits: torch.Tensor, batch: qwen.Batch | None) -> torch.Tensor:
            assert batch is not None
            wanted = ids[batch.positions.long() + 1]
            # the root and the best chain come first
            kept = slice(0, right + 1)
            losses.append(torch.nn.functional.cross_entropy(logits[kept].float(), wanted[kept], reduction="none"))
            return wanted.int()

        state.root.fill_(int(ids[0]))
        while int(state.start) < length:
            decode.speculate(model, propose, state, Plan("tree", strategy=strategy), choose)
        return round(math.exp(torch.cat(losses)[:length].mean().item()), 4)

    # -- nothing is lost -----------------------------------------------------------------------------------------------

    def lossless(self, prompts: int, tokens: int) -> Iterator[dict[str, Any]]:
        """Each mode against the autoregressive text, and that against itself."""
        bench = copy(self)
        bench.setting = replace(self.setting, tokens=tokens)
        stretches = spread(self.text, prompts, self.setting.given)
        row, wanted = bench.decoded(Plan("ar"), prompts=stretches)
        plans = {"ar again": Plan("ar"), "chain": decode.chain(self.draft.config.block), "tree of 22": Plan("tree")}
        for name, plan in plans.items():
            row, found = bench.decoded(plan, prompts=stretches)
            gaps = [bench._gap(*three) for three in zip(stretches, wanted, found, strict=True)]
            parted = [gap for gap in gaps if gap is not None]
            tie = TIES[self.setting.impl]
            equal, lost = len(gaps) - len(parted), sum(gap > tie for gap in parted)
            counts = {"prompts": prompts, "tokens": tokens, "equal": equal, "ties": len(parted) - lost, "lost": lost}
            yield {"mode": name, **counts, "largest_gap": max(parted, default=0.0), "tie": tie, **length_of(row)}

    def _gap(self, prompt: list[int], one: list[int], other: list[int]) -> float | None:
        """How far apart the target's logits are where two texts part; None where they do not."""
        at = next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)
        if at is None:
            return None
        model, s = replace(self.target, captured=()), self.setting
        ids = torch.tensor([*prompt, *one[:at]], dtype=torch.int32, device=s.device)
        state = fresh(model.config, len(ids), s.device, model.do.precision.activations)
        logits = qwen.prefill(model, state, ids)[0]
        return round((logits[one[at]] - logits[other[at]]).abs().item(), 5)


def save(machine: timer.Machine, command: str, found: Mapping[str, list[dict[str, Any]]], home: Path = RESULTS) -> Path:
    """Write the studies into pair/studies.json of this machine, one row a line; those of other calls that stand there
    stay. Ranks go to ranks.json beside it and step times to costs.json, as `draftwood budget` reads them."""
    file = home / machine.gpu / "pair" / "studies.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    held = json.loads(file.read_text())["studies"] if file.exists() else {}
    made = {"command": command, **machine.as_dict()}
    held |= {name: {"made": made, "rows": rows} for name, rows in found.items() if name != "ranks"}
    parts = []
    for name, one in sorted(held.items()):
        rows = ",\n".join(json.dumps(row) for row in one["rows"])
        parts.append(f'"{name}": {{"made": {json.dumps(one["made"])}, "rows": [\n{rows}\n]}}')
    file.write_text('{"schema": 1, "studies": {\n' + ",\n".join(parts) + "\n}}\n")
    for row in found.get("ranks", ()):
        (file.parent / "ranks.json").write_text(json.dumps(row) + "\n")
    if times := found.get("modes"):
        (file.parent / "costs.json").write_text(json.dumps(costs(machine.gpu, times)) + "\n")
    return file


def costs(gpu: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Microseconds of a step by the rows that it verifies: the nodes and their root."""
    us = {mode: {r["budget"] + 1: round(1e3 * r["ms_a_step"], 1) for r in rows if r["mode"] == mode} for mode in MODES}
    return {"gpu": gpu, "tree_us": us["ar"] | us["tree"], "chain_us": us["ar"] | us["chain"]}
