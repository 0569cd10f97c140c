"""Steps of AdamW until a budget of seconds, or of steps, is spent: seeded, saved on the way, taken up where it stopped.

On a GPU one step is one CUDA graph. The learning rate follows the share of the budget that is spent: it rises over the
first WARM of it and falls to a tenth along a cosine, so that a run ends well wherever it runs.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..graph import capture
from .network import Weights

WARM = 0.04
LAST = 0.05
# steps that are queued before the host waits for the device
AHEAD = 8


@dataclass(frozen=True)
class Budget:
    """`steps`, where given, and else `seconds`."""

    seconds: float
    steps: int = 0

    def spent(self, seconds: float, steps: int) -> float:
        return min(1.0, steps / self.steps if self.steps else seconds / self.seconds)


@dataclass
class Progress:
    """What a run has come to; `log` holds {"step", "seconds", "loss", ...} rows."""

    step: int = 0
    seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """name: of the run and its file; weights: on the device; draw: puts new inputs where `loss` reads them; loss: from
    inputs and weights, captured once; look: numbers to log now and then, and at the end."""

    name: str
    weights: Weights
    draw: Callable[[torch.Generator], None]
    loss: Callable[[], torch.Tensor]
    look: Callable[[], dict[str, Any]]
    rate: float
    decay: float = 0.1


def run(
    task: Task,
    budget: Budget,
    folder: Path,
    seed: int,
    tell: Callable[[dict[str, Any]], None],
    every: float = 20.0,
) -> Progress:
    """Train task.weights in place; `every` so many seconds the log grows and the run is saved."""
    device = next(iter(task.weights.values())).device
    optimiser, file = _optimiser(task, device), folder / f"{task.name}.pt"
    random, progress = torch.Generator().manual_seed(seed), Progress()
    if file.exists():
        progress = _resumed(file, task, optimiser, random)
    if budget.spent(progress.seconds, progress.step) >= 1:
        return progress
    for weight in task.weights.values():
        weight.requires_grad_(True)
    seen = torch.zeros((), device=device)
    step = _captured(task, optimiser, seen, random, device)
    before, began = progress.seconds, time.perf_counter()
    looked, since = before, progress.step
    while (spent := budget.spent(progress.seconds, progress.step)) < 1:
        _set_rate(optimiser, task.rate * _schedule(spent))
        task.draw(random)
        step()
        progress.step += 1
        if progress.step % AHEAD == 0 and device.type == "cuda":
            torch.cuda.synchronize(device)
        progress.seconds = before + time.perf_counter() - began
        done = budget.spent(progress.seconds, progress.step) >= 1
        if done or progress.seconds - looked >= every:
            row = {"step": progress.step, "seconds": round(progress.seconds, 1)}
            row |= {"loss": round(seen.item() / (progress.step - since), 4), **task.look()}
            progress.log.append(row)
            tell({"run": task.name, **row})
            _save(file, task, optimiser, random, progress)
            seen.zero_()
            progress.seconds = before + time.perf_counter() - began
            looked, since = progress.seconds, progress.step
    for weight in task.weights.values():
        weight.requires_grad_(False)
    return progress


def _schedule(spent: float) -> float:
    if spent < WARM:
        return max(spent, 1e-3) / WARM
    return LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * (spent - WARM) / (1 - WARM)))


def _optimiser(task: Task, device: torch.device) -> torch.optim.AdamW:
    """Matrices decay, vectors do not."""
    matrices = [w for n, w in task.weights.items() if w.dim() == 2 and "conv1d" not in n]
    others = [w for n, w in task.weights.items() if w.dim() != 2 or "conv1d" in n]
    groups = [{"params": matrices, "weight_decay": task.decay}, {"params": others, "weight_decay": 0.0}]
    on_gpu = device.type == "cuda"
    # a tensor, so that a captured step reads it anew
    rate: Any = torch.tensor(task.rate, device=device) if on_gpu else task.rate
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=on_gpu, capturable=on_gpu)


def _set_rate(optimiser: torch.optim.AdamW, rate: float) -> None:
    for group in optimiser.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _captured(
    task: Task, optimiser: torch.optim.AdamW, seen: torch.Tensor, random: torch.Generator, device: torch.device
) -> Callable[[], None]:
    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            loss = task.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.weights.values(), 1.0)
        optimiser.step()
        seen.add_(loss.detach())

    if device.type != "cuda":
        return step
    # the steps that capturing runs shall leave no trace
    before = random.get_state()
    held = {weight: {key: value.clone() for key, value in one.items()} for weight, one in optimiser.state.items()}
    task.draw(random)
    _set_rate(optimiser, 0.0)
    captured = capture(step, device)
    for weight, one in optimiser.state.items():
        for key, value in one.items():
            value.copy_(held[weight][key]) if weight in held else value.zero_()
    random.set_state(before)
    seen.zero_()
    return captured


def _save(file: Path, task: Task, optimiser: torch.optim.AdamW, random: torch.Generator, progress: Progress) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach() for name, weight in task.weights.items()}
    held = {"weights": weights, "optimiser": optimiser.state_dict(), "random": random.get_state()}
    part = file.with_suffix(".part")
    torch.save({**held, "progress": vars(progress)}, part)
    part.replace(file)


def _resumed(file: Path, task: Task, optimiser: torch.optim.AdamW, random: torch.Generator) -> Progress:
    held = torch.load(file, map_location="cpu", weights_only=True)
    for name, weight in task.weights.items():
        weight.copy_(held["weights"][name])
    optimiser.load_state_dict(held["optimiser"])
    random.set_state(held["random"])
    return Progress(**held["progress"])
