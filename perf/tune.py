"""`draftwood tune`: what it takes, what is to be done, and what becomes of it."""

import json
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from . import studies
from .screen import Screen, winners
from .terminal import Json, Ops, Sources, choose, err, fail, out

if TYPE_CHECKING:
    from ..autotune.drive import Plan, Settled
    from ..autotune.space import Problem


class Sampler(str, Enum):
    gp = "gp"
    tpe = "tpe"
    cmaes = "cmaes"
    random = "random"
    grid = "grid"


def tune(
    ops: Ops = None,
    cases: Annotated[str, typer.Option(help="Case lists, by comma. A case is a bucket: it gets a config.")] = "perf",
    case: Annotated[str, typer.Option(help="Only cases whose id holds this text.", show_default=False)] = "",
    trials: Annotated[
        int, typer.Option(help="Finished trials a case, those of earlier runs included; 0: an eighth of its points.")
    ] = 0,
    seconds: Annotated[
        float, typer.Option("--time", help="Seconds in all, shared by the cases as they are worth it; 0: no limit.")
    ] = 0.0,
    sampler: Annotated[Sampler, typer.Option(help="Who proposes points. grid times every legal point.")] = Sampler.gp,
    gpus: Annotated[
        str, typer.Option(help="all, or numbers by comma: 0,1. One worker each, on the same studies.")
    ] = "0",
    storage: Annotated[
        str,
        typer.Option(
            help="A journal's path, postgresql://user:password@host/name, or grpc://host:port. "
            "A journal under the user's cache directory by default.",
            show_default=False,
        ),
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the sampler; with --simulate the first of --seeds.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds a trial may take before it counts as hung.")] = 60.0,
    save: Annotated[bool, typer.Option(help="Write the winners to autotune/configs/<gpu>/.")] = True,
    report: Annotated[
        str, typer.Option(help="Write an HTML report with pictures a study into this folder.", show_default=False)
    ] = "",
    status: Annotated[bool, typer.Option("--status", help="Say what the storage holds, and tune nothing.")] = False,
    same: Annotated[
        int,
        typer.Option(
            "--aa", help="Race each default against itself so many times, and say how often a difference is seen."
        ),
    ] = 0,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Replay samplers on the committed landscapes; needs no GPU.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="With --simulate: searches a landscape and sampler.")] = 20,
    survey: Annotated[bool, typer.Option("--survey", help="Time every legal point and write the landscape.")] = False,
    serve: Annotated[
        int,
        typer.Option(
            help="Serve the storage to other machines at this port (grpc://) and tune nothing.", show_default=False
        ),
    ] = 0,
    times: Annotated[str, typer.Option(help="Take times from a landscape file; for tests.", hidden=True)] = "",
    sources: Sources = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Find the fastest right config of each op and case on this GPU.

    A candidate is refused by the op's rules, or compiled, checked by the lab in a process of its own, and raced against
    the fastest so far. What is wrong, hangs or crashes loses its trial and is recorded with the command that shows it.
    Every finished trial is on disk before the next begins: stop it at any time and give the same command again.

    **Many GPUs:** --gpus all. **Many machines:** the same command on each with one --storage postgresql://…, or
    `draftwood tune --serve 13000` on one and --storage grpc://thatone:13000 on the others.

    **Without a GPU:** --simulate compares samplers on landscapes that were timed once.
    """
    console = None if as_json else err
    if find_spec("optuna") is None:
        raise fail("tuning needs optuna; pip install 'draftwood[tune]'")
    if serve:
        from ..autotune.storage import serve as serving

        err.print(f"serving at port {serve}; elsewhere: draftwood tune --storage grpc://this-machine:{serve}")
        return serving(storage, serve)
    from ..lab.device import interpret_without_gpu

    interpret_without_gpu()
    if simulate:
        return studies.simulate(ops, case, [sampler.value] if sampler is not Sampler.gp else [], seed, seeds, as_json)
    chosen = choose(ops, sources)
    try:
        devices, gpu, target = _devices(gpus, times)
        problems = _problems(chosen, cases, case, gpu, sources)
        plans = _plans(problems, devices, sampler.value, trials, seconds, storage, seed, timeout, times, target)
        if status:
            return studies.status(problems, storage, as_json)
        if survey:
            return studies.survey(problems, devices[0], as_json)
        if same:
            return studies.same(problems, devices[0], same, as_json)
        settled = _tune(plans, console, save and not times)
    except ValueError as error:
        raise fail(str(error)) from error
    _finish(settled, save and not times, report, storage, as_json)


# -- what is to be done ------------------------------------------------------------------------------------------------


def _devices(gpus: str, times: str) -> tuple[list[str], str, tuple[Any, ...]]:
    """The devices, the name of their GPU, and what is compiled for it."""
    import torch

    if times:
        return [f"cpu:{number}" for number in gpus.split(",")], json.loads(_text(Path(times)))["gpu"], ()
    if not torch.cuda.is_available():
        raise ValueError("no GPU here: a config's time on a CPU says nothing. --simulate needs none")
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from ..autotune.ahead import PRELOAD
    from ..autotune.worker import meet

    count = torch.cuda.device_count()
    try:
        numbers = list(range(count)) if gpus == "all" else [int(text) for text in gpus.split(",")]
    except ValueError:
        raise ValueError(f"--gpus takes all, or numbers by comma, not '{gpus}'") from None
    if missing := [number for number in numbers if number >= count]:
        raise ValueError(f"there is no GPU {missing[0]} here, there are {count}")
    devices = [f"cuda:{number}" for number in numbers]
    # asked in a process of its own: this one stays without a context on any GPU
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = dict(pool.submit(meet, device).result() for device in devices)
    if len(found) > 1:
        raise ValueError(f"one study is for one kind of GPU, these are {', '.join(sorted(found))}")
    return devices, *found.popitem()


def _text(file: Path) -> str:
    import gzip

    return (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode()


def _problems(chosen: list[str], cases: str, only: str, gpu: str, sources: list[str]) -> list["Problem"]:
    from ..autotune.space import Problem
    from ..lab.check import GROUPS
    from ..reference.ops import registered

    found, ops = [], registered(sources)
    for name in chosen:
        if not ops[name].has("autotune"):
            continue
        for group in cases.split(","):
            if group not in GROUPS:
                raise ValueError(f"no case list named '{group}'; there are {', '.join(GROUPS)}")
            found += [Problem(name, one, gpu, tuple(sources)) for one in ops[name].spec.cases[group] if only in one.id]
    if not found:
        raise ValueError(f"no tunable op and case is named so; draftwood list {' '.join(chosen[:3])} --cases")
    return list(dict.fromkeys(found))


def _plans(
    problems: list["Problem"],
    devices: list[str],
    sampler: str,
    trials: int,
    seconds: float,
    storage: str,
    seed: int,
    timeout: float,
    times: str,
    target: tuple[Any, ...],
) -> list["Plan"]:
    from ..autotune import atlas, winners
    from ..autotune.drive import Plan, compilers

    warm = {problem.name: winners.warm(problem) for problem in problems}
    bad = {problem.name: atlas.known_bad(problem) for problem in problems}
    return [
        Plan(
            tuple(problems),
            device,
            sampler,
            trials,
            seconds,
            storage,
            seed + number,
            timeout,
            times,
            compilers(len(devices)),
            target,
            number == 0,
            warm,
            bad,
        )
        for number, device in enumerate(devices)
    ]


# -- tuning ------------------------------------------------------------------------------------------------------------


def _tune(plans: list["Plan"], console: Console | None, save: bool) -> list["Settled"]:
    """Every case in turn; a winner is written as soon as it is settled."""
    from ..autotune import drive
    from ..autotune import winners as committed

    found: list[Settled] = []
    screen = Screen(console, list(plans[0].problems))
    try:
        with screen.progress:
            for settled in drive.run_many(plans, screen):
                found.append(settled)
                if settled.entry and save:
                    committed.save(settled.problem.op_name, settled.problem.gpu, [settled.entry])
    except KeyboardInterrupt:
        err.print("stopped; every finished trial is kept: the same command goes on from here")
    return found


def _finish(settled: list["Settled"], save: bool, report: str, storage: str, as_json: bool) -> None:
    from ..autotune import atlas

    rows = [
        {
            "op": one.problem.op_name,
            "entry": one.entry,
            "why": one.verdict.why if one.verdict else "no trial was right, or none had time",
        }
        for one in settled
    ]
    if save:
        atlas.add([one.problem for one in settled], storage, settled[0].facts["machine"] if settled else None)
    if report:
        from ..autotune import report as reporting

        for one in settled:
            file = reporting.write(one.problem, storage, one.facts["read_gb_s"], Path(report))
            err.print(f"report: {file}", highlight=False)
    if as_json:
        print(json.dumps(rows, indent=1))
        raise typer.Exit(0 if rows else 1)
    out.print(winners(rows))
    raise typer.Exit(0 if rows and all(row["entry"] for row in rows) else 1)
