"""A model from its files, ready to write.

from draftwood.models.api import open_text

model = open_text("Qwen3.5-27B-Q4_K_M.gguf", draft="Qwen3.5-27B-DFlash")
for piece in model.write(chat="Why is the sky blue?"):
    print(piece, end="")
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import checkpoint, draft_files, gguf, safetensors, target_files, text
from .arithmetic import PRECISIONS, Precision
from .decode import Plan, chain
from .generate import Generator
from .gguf import BadFile
from .sampling import Sampling
from .target import Target
from .text import Text, pieces

AUTO = 0
# nodes of a tree below its root where nothing is said: what pays on most GPUs
USUAL_BUDGET = 22
KV_FORMATS = ("f16", "bf16", "q8_0", "q4_0", "tq3_0")


@dataclass(frozen=True)
class Writer:
    """A generator and its text; `generator.stats` tells of the last call."""

    generator: Generator
    text: Text

    def write(
        self,
        prompt: str = "",
        chat: str = "",
        system: str = "",
        thinking: bool = True,
        limit: int = 512,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """The text that follows a prompt, or answers a chat message, a piece at a time."""
        if chat:
            messages = [{"role": "system", "content": system}] if system else []
            prompt = self.text.chat([*messages, {"role": "user", "content": chat}], thinking)
        stream = self.generator.stream(self.text.encode(prompt), limit, sorted(self.text.ends))
        yield from pieces(self.text, stream, stop)


def open_text(
    path: str | Path,
    draft: str | Path | None = None,
    mode: str = "",
    budget: int = AUTO,
    context: int = 8192,
    kv: str = "q8_0",
    precision: str = "int8",
    sampling: Sampling | None = None,
    draft_window: int = 0,
    device: str = "",
    impl: str = "",
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Writer:
    """Load a target, from a GGUF or a checkpoint's folder, and, where one is named, its draft. `kv` is one format, or
    two by comma for keys and values.

    Without a GPU the references run, which is slow: for small models and for checking.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    impl = impl or ("kernels" if where.type == "cuda" else "reference")
    formats = tuple(kv.split(",")) * (1 if "," in kv else 2)
    if len(formats) != 2 or not set(formats) <= set(KV_FORMATS):
        raise ValueError(f"a KV cache is {', '.join(KV_FORMATS)}, or two of them by comma, not '{kv}'")
    mode = mode or ("tree" if draft else "ar")
    if mode != "ar" and not draft:
        raise ValueError(f"mode {mode} needs a draft")
    # the f32 reference path is the one that runs everywhere
    numbers = precision if where.type == "cuda" else "f32"
    drafter = None
    if draft and mode != "ar":
        of_draft = Precision(torch.bfloat16, torch.bfloat16) if where.type == "cuda" else PRECISIONS["f32"]
        drafter = draft_files.load(Path(draft), where, of_draft, impl, draft_window)
    captured = drafter.config.captured if drafter else ()
    model, words = _target(Path(path), where, numbers, impl, captured, progress)
    if drafter and (max(captured) >= model.config.L or drafter.config.E_target != model.config.E):
        found = f"layers {captured} of {drafter.config.E_target} numbers"
        raise BadFile(f"the draft reads {found}, the target has {model.config.L} of {model.config.E}")
    if drafter and drafter.config.E != model.config.E:
        raise BadFile(f"the draft is {drafter.config.E} wide, the target {model.config.E}: they share an embedding")
    plans = {"ar": Plan("ar"), "chain": chain(drafter.config.block if drafter else 16)}
    plan = plans.get(mode) or Plan(mode, budget=budget or USUAL_BUDGET)
    return Writer(Generator(model, drafter, plan, sampling, context, (formats[0], formats[1])), words)


def _target(
    path: Path,
    device: torch.device,
    precision: str,
    impl: str,
    captured: tuple[int, ...],
    progress: Callable[[int, int], None],
) -> tuple[Target, Text]:
    if path.is_dir():
        words = text.from_folder(path)
        # weights of a checkpoint are bf16: activations too, or their small ones would round to nothing
        numbers = "f32" if precision == "f32" else "bf16"
        return checkpoint.load(safetensors.load(path), device, numbers, impl, captured), words
    file = gguf.load(path)
    words, total = text.load(file), sum(entry.size for entry in file.entries.values())

    def arrived(size: int) -> None:
        progress(size, total)

    return target_files.load(file, device, precision, impl, captured, repack=impl == "kernels", progress=arrived), words
