"""`draftwood generate` and `draftwood bench model`: what the kernels are for, from the command line."""

import json
import os
import sys
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from . import pair_cli

# beside the tree that is shown
COMPARED = ("ar", "chain")
out = Console(width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True)


class Kv(str, Enum):
    f16 = "f16"
    q8_0 = "q8_0"
    q4_0 = "q4_0"
    tq3_0 = "tq3_0"


class Mode(str, Enum):
    ar = "ar"
    chain = "chain"
    tree = "tree"


class Peer(str, Enum):
    transformers = "transformers"


class Numbers(str, Enum):
    exact = "exact"
    bf16 = "bf16"
    int8 = "int8"
    f32 = "f32"


PRECISION = (
    "What activations meet weights in. int8 rounds them in steps of one row, as llama.cpp does; "
    "in those of several it is exact."
)


def fail(sentence: str) -> "typer.Exit":
    err.print(f"[red]draftwood:[/red] {sentence}", highlight=False)
    return typer.Exit(2)


def let_memory_grow() -> None:
    """Have PyTorch, which reads this when it first uses a GPU, take memory in few ranges that grow: what is loaded lies
    between what loading needs, and 2 GiB of holes would stay beside a 27B."""
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def bench_model(
    synthetic: Annotated[str, typer.Option(help="Size: 0.8b, 2b, 4b, 9b, 27b; its weights are random.")] = "27b",
    mix: Annotated[str, typer.Option(help="Formats of the weights: unsloth-3.5, unsloth-3.6, stock.")] = "unsloth-3.5",
    contexts: Annotated[str, typer.Option(help="Committed tokens, by comma.")] = "4096,32768,131072",
    budgets: Annotated[str, typer.Option(help="Nodes of a tree below its root, by comma.")] = "8,16,22,40,64",
    further: Annotated[
        str, typer.Option(help="Budgets from the second context on; the same by default.", show_default=False)
    ] = "",
    kv: Annotated[Kv, typer.Option(help="Format of the KV cache.")] = Kv.q4_0,
    precision: Annotated[Numbers, typer.Option(help=PRECISION)] = Numbers.int8,
    beside: Annotated[
        list[Peer], typer.Option(help="Also time this, bf16 and eager, at the first context.", show_default=False)
    ] = [],  # noqa: B006
    replays: Annotated[int, typer.Option(help="Timed replays of each step.")] = 30,
    jobs: Annotated[int, typer.Option(help="Processes that compile beforehand, 4 to 8 GiB each; 0: none.")] = 8,
    save: Annotated[bool, typer.Option(help="Write perf/results/<gpu>/model.json.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Time whole steps: autoregressive, draft, chain and trees, on random weights of the real shapes and formats.

    Each step is one CUDA graph. How many drafted tokens a step keeps is replayed from published runs.
    """
    let_memory_grow()
    import torch

    from ..autotune import timer
    from ..models import qwen35
    from . import bench, model
    from . import beside as peers

    if not torch.cuda.is_available():
        raise fail("bench model times whole steps on a GPU, and there is none here")
    if synthetic not in qwen35.FAMILY or mix not in qwen35.MIXES:
        raise fail(f"models are {', '.join(qwen35.FAMILY)} and mixes {', '.join(qwen35.MIXES)}, not {synthetic}, {mix}")
    device = torch.device("cuda")
    setting = model.Setting(qwen35.FAMILY[synthetic], device, mix, precision.value, (kv.value, kv.value))
    rows: list[dict[str, Any]] = []
    machine = timer.machine(device)
    if beside and find_spec("transformers") is None:
        raise fail("transformers is not installed here; pip install transformers")
    if beside:
        peers.begin_to_import()

    def keep() -> None:
        if save:
            bench.save("model", machine, "draftwood " + " ".join(sys.argv[1:]), rows)

    with err.status("making weights, compiling") as status:
        later = _numbers(further) if further else ()
        for row in model.entries(setting, _numbers(contexts), _numbers(budgets), later, replays, jobs=jobs):
            rows.append(row)
            keep()
            status.update(f"{row['case']['step']} at {row['case']['context']}: {row['ms']['p50']} ms")
        if beside:
            status.update("making transformers' weights")
            torch.cuda.empty_cache()
            rate = timer.bandwidth(device)["read"]
            rows += peers.entries(setting.model, device, rate, _numbers(contexts)[:1])
            keep()
    if as_json:
        print(json.dumps({"machine": machine.as_dict(), "results": rows}, indent=1))
        return
    out.print(steps_table(rows))
    for row in rows:
        if "waterfall" in row:
            out.print(waterfall_table(row))
    made_with = (
        f"{machine.name} ({machine.gpu}), torch {machine.torch}, triton {machine.triton}, driver {machine.driver}"
    )
    out.print(f"{made_with}; synthetic {synthetic}, mix {mix}", highlight=False)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise fail(f"whole numbers by comma, not '{text}'") from error
    if min(found) < 1:
        raise fail(f"numbers from 1 up, not '{text}'")
    return found


def steps_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="steps", title_justify="left")
    table.add_column("step", no_wrap=True)
    for column in (
        "context",
        "numbers",
        "kv",
        "ms",
        "p20–p80",
        "floor ms",
        "of floor",
        "tokens",
        "tok/s",
        "peak GiB",
        "device GiB",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        case, ms = row["case"], row["ms"]
        table.add_row(
            case["step"] if row["impl"] == "kernels" else f"{row['impl']}: {case['step']}",
            str(case["context"]),
            case["precision"],
            case["kv"],
            f"{ms['p50']:.3f}",
            f"{ms['p20']:.3f}–{ms['p80']:.3f}",
            f"{row['floor_ms']:.2f}",
            f"{row['of_floor']:.0%}",
            f"{row['tokens_a_step']:.2f}",
            f"{row['tokens_per_s']:.0f}" if row["tokens_per_s"] else "–",
            str(row.get("peak_gib", "–")),
            str(row.get("device_gib", "–")),
        )
    return table


def waterfall_table(row: dict[str, Any]) -> Table:
    """Where one step's time goes, op by op, then phase by phase."""
    fall, case = row["waterfall"], row["case"]
    title = f"{case['step']} at {case['context']}: {fall['explained']:.1%} of {row['ms']['p50']:.3f} ms explained"
    table = Table(title=title, title_justify="left")
    table.add_column("op or phase", no_wrap=True)
    for column in ("us", "launches", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    us = row["ms"]["p50"] * 1e3
    for name, (spent, launches) in fall["ops"].items():
        table.add_row(name, f"{spent:.0f}", str(launches), f"{spent / us:.1%}")
    table.add_row("no kernel running", f"{fall['idle_us']:.0f}", "", f"{fall['idle_us'] / us:.1%}", end_section=True)
    for name, spent in fall["phases_us"].items():
        table.add_row(f"phase: {name}", f"{spent:.0f}", "", f"{spent / us:.1%}")
    return table


def generate(
    target: Annotated[
        Path | None,
        typer.Option(
            help="The model: a GGUF of architecture qwen35. Without one, the small pair that ships here.",
            show_default=False,
        ),
    ] = None,
    draft: Annotated[
        Path | None, typer.Option(help="Its DFlash draft: GGUF or safetensors.", show_default=False)
    ] = None,
    prompt: Annotated[str, typer.Option(help="Text to go on from.", show_default=False)] = "",
    chat: Annotated[
        str, typer.Option(help="A user's message, put through the chat template.", show_default=False)
    ] = "",
    system: Annotated[str, typer.Option(help="A system message for --chat.", show_default=False)] = "",
    thinking: Annotated[bool, typer.Option(help="With --chat: let the model think first.")] = True,
    mode: Annotated[Mode | None, typer.Option(help="Tree with a draft, else ar.", show_default=False)] = None,
    budget: Annotated[str, typer.Option(help="Nodes of a tree below its root, or auto.")] = "auto",
    kv: Annotated[str, typer.Option(help="KV cache: a format, or K,V: f16, q8_0, q4_0, tq3_0.")] = "q8_0",
    ctx: Annotated[int, typer.Option(help="Tokens of context.")] = 8192,
    max_tokens: Annotated[
        int, typer.Option(help="Tokens to write at most; 512, or 256 of the small pair.", show_default=False)
    ] = 0,
    precision: Annotated[Numbers, typer.Option(help=PRECISION)] = Numbers.int8,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0: all tokens.")] = 0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    min_p: Annotated[float, typer.Option()] = 0.0,
    repetition: Annotated[
        float,
        typer.Option(help="Repetition penalty; 1 is none. By default 1, of the small pair 1.2.", show_default=False),
    ] = 0.0,
    frequency: Annotated[float, typer.Option(help="Frequency penalty.")] = 0.0,
    presence: Annotated[float, typer.Option(help="Presence penalty.")] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    stop: Annotated[list[str], typer.Option(help="Stop before this text; repeatable.", show_default=False)] = [],  # noqa: B006
    draft_window: Annotated[
        int, typer.Option("--draft-swa", help="Window of a draft whose file does not tell; 0: as the file says.")
    ] = 0,
    stats: Annotated[bool, typer.Option("--stats", help="Tokens a step and a second, at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Write text with a model from its GGUF, with its DFlash draft or without.

    Without --target the small pair goes on writing Python, and autoregressive, chain and tree are compared.
    """
    from ..lab.device import interpret_without_gpu

    # without a GPU the references run: the kernels' interpreter is for checking them
    interpret_without_gpu()
    let_memory_grow()
    import torch

    from ..models import api, shipped
    from ..models.gguf import BadFile

    compared: tuple[str, ...] = ()
    try:
        if target is None:
            if chat or draft:
                raise fail("the small pair writes Python after --prompt, with a draft of its own; name a --target")
            target, draft, prompt = shipped.target(), shipped.draft(), prompt or shipped.PROMPT
            compared, max_tokens = () if mode else COMPARED, max_tokens or 256
            repetition = repetition or shipped.REPETITION
            # of so small a model threads would wait for one another longer than they work
            torch.set_num_threads(1)
        if bool(prompt) == bool(chat):
            raise fail("give --prompt or --chat, one of them")
        limit = max_tokens or 512
        sampling = api.Sampling(temperature, top_k, top_p, min_p, repetition or 1.0, frequency, presence, seed=seed)

        def opened(mode: str) -> api.Writer:
            with _loading() as progress:
                return api.open_text(
                    target,
                    draft,
                    mode=mode,
                    budget=api.AUTO if budget == "auto" else int(budget),
                    context=ctx,
                    kv=kv,
                    precision=precision.value,
                    draft_window=draft_window,
                    sampling=sampling,
                    progress=progress,
                )

        text, whole = opened(mode.value if mode else ""), ""
        if compared and not as_json:
            print(prompt, end="", flush=True)
        for piece in text.write(prompt, chat, system=system, thinking=thinking, limit=limit, stop=stop):
            whole += piece
            if not as_json:
                print(piece, end="", flush=True)
        runs = {"tree": (text.generator.stats, True)} if compared else {}
        for name in compared:
            other = opened(name)
            same = "".join(other.write(prompt, limit=limit, stop=stop)) == whole
            runs[name] = other.generator.stats, same
    except (BadFile, ValueError) as error:
        raise fail(str(error)) from error
    found = text.generator.stats
    numbers = {
        "prompt_tokens": found.prompt,
        "tokens": found.tokens,
        "steps": found.steps,
        "accept_length": round(found.accept_length, 3),
        "tokens_per_s": round(found.tokens_per_s, 2),
        "prefill_s": round(found.prefill_s, 3),
        "decode_s": round(found.decode_s, 3),
    }
    rows = [
        {"mode": name, "accept_length": round(ran.accept_length, 3), "tokens_per_s": round(ran.tokens_per_s, 1)}
        | {"steps": ran.steps}
        # what is drawn differs from run to run of another shape
        | ({} if temperature else {"same_text": same})
        for name in ("ar", "chain", "tree")
        if name in runs
        for ran, same in (runs[name],)
    ]
    if as_json:
        print(json.dumps({"text": whole, **numbers, **({"modes": rows} if rows else {})}))
        return
    print()
    if rows:
        print()
        out.print(pair_cli.rows_table(f"{found.tokens} tokens of the small pair, three ways", rows))
    if stats:
        table = Table(title_justify="left", show_header=False)
        for name, value in numbers.items():
            table.add_row(name.replace("_", " "), str(value))
        err.print(table)


class _loading:
    """A bar on standard error of the bytes that have reached the device; called with (bytes, all bytes)."""

    def __enter__(self) -> "_loading":
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self.bar = Progress(*columns, console=err, transient=True)
        self.bar.start()
        self.task = self.bar.add_task("loading", total=None)
        return self

    def __call__(self, done: int, of: int) -> None:
        self.bar.update(self.task, advance=done, total=of)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
