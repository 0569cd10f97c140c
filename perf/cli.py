"""The draftwood command. Torch and Triton are imported inside the commands, so that --help answers at once."""

import json
import sys
import time
from dataclasses import replace
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from . import model_cli, pair_cli, tables
from .budget import budget
from .terminal import Json, Ops, Sources, choose, err, fail, given, out
from .tune import tune

if TYPE_CHECKING:
    from ..lab.oracles import Verdict

app = typer.Typer(
    name="draftwood",
    help="Kernels for draft-tree speculative decoding: check them, time them, see what this machine can run.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class Impl(str, Enum):
    kernels = "kernels"
    reference = "reference"


@app.command()
def check(
    ops: Ops = None,
    cases: Annotated[str, typer.Option(help="Case lists, by comma: smoke, edge, qwen35, perf.")] = "smoke,edge",
    case: Annotated[
        str, typer.Option(help="One case by its id, as a failure prints it; needs one op.", show_default=False)
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the inputs.")] = 0,
    oracle: Annotated[list[str], typer.Option(help="Only this oracle; repeatable.", show_default=False)] = [],  # noqa: B006
    without: Annotated[list[str], typer.Option(help="All oracles but this; repeatable.", show_default=False)] = [],  # noqa: B006
    impl: Annotated[Impl, typer.Option(help="What is under test.")] = Impl.kernels,
    config: Annotated[
        str, typer.Option(help="JSON of the kernel's Config, in place of the one it would pick.", show_default=False)
    ] = "",
    mutants: Annotated[
        bool,
        typer.Option(
            "--mutants", help="Try seeded bugs instead: each must be caught. Prints the kill rate and the survivors."
        ),
    ] = False,
    ablate: Annotated[
        bool,
        typer.Option("--ablate", help="With --mutants: which bugs only one oracle sees, and the kill rate without it."),
    ] = False,
    sanitize: Annotated[
        bool,
        typer.Option(
            "--sanitize",
            help="Run the smoke cases under an outside checker: compute-sanitizer on a GPU, triton-viz elsewhere.",
        ),
    ] = False,
    jobs: Annotated[int, typer.Option(help="Processes; 0 is one a core in the interpreter, one on a GPU.")] = 0,
    sources: Sources = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Hold every op against its meaning: numbers, NaN, poison, red zones, determinism, order, bounds, races, ancestor
    paths.

    Without a GPU the kernels run in Triton's interpreter. The exit code is 1 if anything failed.
    """
    from ..lab.device import interpret_without_gpu

    interpret_without_gpu()
    from ..lab import check as lab

    chosen = choose(ops, sources)
    groups = cases.split(",")
    if unknown := [group for group in groups if group not in lab.GROUPS]:
        raise fail(f"no case list named '{unknown[0]}'; there are {', '.join(lab.GROUPS)}")
    if sanitize:
        from ..lab.sanitize import sanitize as outside

        raise typer.Exit(outside(chosen, sources, err))
    if config:
        given(chosen, config, sources)
    plan = lab.Plan(tuple(sources), tuple(oracle) or None, frozenset(without), impl.value, lab.target(), config)
    if mutants:
        from . import hunt

        try:
            bugs = hunt.seeded(chosen)
        except ValueError as error:
            raise fail(str(error)) from error
        if not bugs:
            raise fail("no seeded bugs for these ops")
        run = hunt.ablate if ablate else hunt.kill
        raise typer.Exit(run(chosen, plan, jobs, out, None if as_json else err))
    if case:
        if len(chosen) != 1:
            raise fail("--case needs exactly one op")
        try:
            work = [lab.Job(chosen[0], lab.parse_case(chosen[0], case, sources), seed)]
        except ValueError as error:
            raise fail(str(error)) from error
    else:
        work = lab.jobs(chosen, groups, sources, seed)
    started = time.perf_counter()
    verdicts: list[Verdict] = []
    for _, found in tables.progress(lab.run(work, plan, jobs), len(work), "checking", None if as_json else err):
        verdicts += found
        for verdict in found:
            if verdict.status in ("fail", "error"):
                err.print(str(verdict), highlight=False, markup=False)
    failed = sum(verdict.status in ("fail", "error") for verdict in verdicts)
    if as_json:
        print(json.dumps([vars(verdict) for verdict in verdicts], indent=0))
    else:
        out.print(tables.verdicts(chosen, verdicts))
        where = "Triton's interpreter on the CPU" if plan.device == "cpu" and impl is Impl.kernels else plan.device
        seconds = time.perf_counter() - started
        summary = f"{len(verdicts)} verdicts on {len(work)} cases in {seconds:.0f} s, {where}: {failed} failed"
        out.print(summary, highlight=False)
    raise typer.Exit(1 if failed or not verdicts else 0)


@app.command("list")
def list_(
    ops: Ops = None,
    cases: Annotated[bool, typer.Option("--cases", help="Name every case too.")] = False,
    sources: Sources = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Name the ops, what they compute, their sizes and their cases."""
    from ..reference.ops import registered

    found = registered(sources)
    rows: list[dict[str, Any]] = []
    for name in choose(ops, sources):
        spec = found[name].spec
        rows.append(
            {
                "op": name,
                "formula": spec.formula,
                "package": found[name].package,
                "kernel": found[name].has("kernels"),
                "tunable": found[name].has("autotune"),
                "dims": {dim.name: [dim.low, dim.high] for dim in spec.dims},
                "choices": {key: list(values) for key, values in spec.choices.items()},
                "cases": {group: [case.id for case in listed] for group, listed in spec.cases.items()},
            }
        )
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(title_justify="left")
    for column in ("op", "formula", "dims", "cases"):
        table.add_column(column, overflow="fold")
    for row in rows:
        counts = ", ".join(f"{group} {len(ids)}" for group, ids in row["cases"].items())
        table.add_row(row["op"], row["formula"], " ".join(row["dims"]), counts)
    out.print(table)
    if cases:
        for row in rows:
            for group, ids in row["cases"].items():
                for item in ids:
                    out.print(f"{row['op']}  {group}  {item}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def bench(
    ops: Ops = None,
    cases: Annotated[str, typer.Option(help="Case lists, by comma.")] = "perf",
    case: Annotated[str, typer.Option(help="One case by its id; needs one op.", show_default=False)] = "",
    impl: Annotated[Impl, typer.Option(help="What is timed.")] = Impl.kernels,
    baselines: Annotated[bool, typer.Option(help="Time what a torch user would pick, too.")] = True,
    against: Annotated[
        str,
        typer.Option(
            help="default: race each op's default config against the one picked here, and write "
            "perf/results/<gpu>/against.json.",
            show_default=False,
        ),
    ] = "",
    config: Annotated[
        str,
        typer.Option(
            help="JSON of a Config: race it against the one picked here, and write nothing. Whether it is right says "
            "`check --config`.",
            show_default=False,
        ),
    ] = "",
    save: Annotated[bool, typer.Option(help="Write perf/results/<gpu>/<op>.json.")] = True,
    regress: Annotated[
        float,
        typer.Option(
            help="Compare with the committed results; exit 1 where a case is slower by more than this share.",
            show_default=False,
        ),
    ] = 0.0,
    sources: Sources = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Time ops: microseconds, GB/s, share of the measured bandwidth, times faster than torch. `bench model`: a whole
    model's steps.

    On a GPU: CUDA-graph replay, operands rotated past the L2. On a CPU the references are timed and marked as such, and
    nothing is saved.
    """
    from ..lab.device import interpret_without_gpu

    interpret_without_gpu()
    import torch

    from ..autotune import timer
    from ..lab import check as lab
    from ..reference.ops import registered
    from . import bench as benching

    if against not in ("", "default"):
        raise fail(f"--against takes default, not '{against}'")
    device = torch.device(lab.target())
    if config and device.type == "cpu":
        raise fail("--config races kernels, which takes a GPU")
    if device.type == "cpu":
        err.print("[yellow]no GPU: timing the references on the CPU, on the smoke cases; nothing is saved[/yellow]")
        impl, save, cases = Impl.reference, False, "smoke" if cases == "perf" else cases
    chosen = choose(ops, sources)
    try:
        work = (
            [lab.Job(chosen[0], lab.parse_case(chosen[0], case, sources))]
            if case
            else lab.jobs(chosen, cases.split(","), sources)
        )
    except ValueError as error:
        raise fail(str(error)) from error
    found = registered(sources)
    machine = timer.machine(device)
    if config:
        chosen_config = given(chosen, config, sources)
        pairs = (benching.duel(found[job.op], job.case, device, chosen_config) for job in work if job.case)
        duels = list(tables.progress(pairs, len(work), "racing", None if as_json else err))
        if as_json:
            print(json.dumps({"machine": machine.as_dict(), "results": duels}, indent=1))
        else:
            out.print(tables.duels(duels))
        raise typer.Exit(0)
    started = time.perf_counter()
    if device.type == "cuda" and impl is Impl.kernels:
        benching.precompile([(job.op, job.case) for job in work if job.case], tuple(sources))
    compiled = time.perf_counter()
    command = "draftwood " + " ".join(sys.argv[1:])
    rows: dict[str, list[dict[str, Any]]] = {}
    timed = (
        (job, benching.entry(found[job.op], job.case, device, impl.value, baselines, bool(against)))
        for job in work
        if job.case
    )
    worse: list[str] = []
    for job, row in tables.progress(timed, len(work), "timing", None if as_json else err):
        rows.setdefault(job.op, []).append(row)
        if regress:
            worse += [
                f"{job.op} {text}"
                for text in benching.compare([row], benching.RESULTS / machine.gpu / f"{job.op}.json", regress)
            ]
        if save:
            benching.save(job.op, machine, command, [row])
        if save and "default" in row:
            benching.save_against(machine, command, [benching.gain_row(job.op, row)])
    raced = [benching.gain_row(op, row) for op, listed in rows.items() for row in listed if "default" in row]
    gained = {"against": benching.gains(raced)} if raced else {}
    if as_json:
        held = {"machine": machine.as_dict(), "bandwidth": timer.bandwidth(device), "results": rows}
        print(json.dumps(held | gained, indent=1))
    else:
        out.print(tables.timings(rows))
        if raced:
            out.print(tables.gains(gained["against"]))
        rates = timer.bandwidth(device)
        made_with = f"{machine.name} ({machine.gpu}), torch {machine.torch}, triton {machine.triton}"
        out.print(f"{made_with}; measured read {rates['read']} GB/s, copy {rates['copy']} GB/s", highlight=False)
    spent = compiled - started, time.perf_counter() - compiled
    err.print(f"{len(work)} cases: {spent[0]:.0f} s of compiling, {spent[1]:.0f} s of timing", highlight=False)
    for text in worse:
        err.print(f"[red]slower:[/red] {text}", highlight=False)
    raise typer.Exit(1 if worse else 0)


@app.command("formats")
def formats_(
    gpu: Annotated[str, typer.Option(help="Whose measured times to show.")] = "sm90-h200", as_json: Json = False
) -> None:
    """Say what each format of weights and caches costs and loses: bits, errors, layout, and attention's time beside
    its error."""
    from . import formats

    rows = formats.rows(gpu)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        out.print(tables.formats(rows))


@app.command()
def ports(
    ops: Ops = None,
    arch: Annotated[
        list[str], typer.Option(help="Only this architecture (sm90, gfx942); repeatable.", show_default=False)
    ] = [],  # noqa: B006
    cases: Annotated[str, typer.Option(help="Case lists, by comma.")] = "perf",
    configs: Annotated[
        str, typer.Option(help="By comma: default, tuned (committed winners), edge (both ends of every knob).")
    ] = "default,tuned",
    jobs: Annotated[int, typer.Option(help="Processes; 0 is one a core.")] = 0,
    save: Annotated[bool, typer.Option(help="Write perf/results/ports.json and PORTS.md.")] = False,
    diff: Annotated[
        bool,
        typer.Option(
            "--diff",
            help="Exit 1 where a kernel does not compile, spills or has products wait, and did not when last saved.",
        ),
    ] = False,
    foresee: Annotated[
        int,
        typer.Option(
            help="Draw so many points an op and architecture from the whole space, say of each whether it will run, "
            "and compile it: how often was that right?",
            show_default=False,
        ),
    ] = 0,
    most: Annotated[
        int,
        typer.Option(
            help="Of --foresee: compile all points that are refused, and so many of an op's others; 0: all of them."
        ),
    ] = 0,
    limit: Annotated[
        float,
        typer.Option("--time", help="Of --foresee: seconds, then what is compiled by then is the sample; 0: all."),
    ] = 0.0,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit", help="Where defaults spill, look for configs that do not; write autotune/configs/<arch>-fitted/."
        ),
    ] = False,
    explain: Annotated[
        str,
        typer.Option(help="Say of each case why this config (JSON; {}: the default) will not run.", show_default=False),
    ] = "",
    sources: Sources = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Compile every kernel for every architecture, on a machine that has none of them.

    Registers, spills, shared memory, tensor-core use and occupancy come from the finished binaries, and from ptxas
    whether it has products of wgmma wait for each other, which it says to nobody else. The first run takes
    minutes; what has not changed is read from a cache afterwards. The exit code is 1 if a default config fails
    anywhere. --explain compiles nothing; --foresee says how far it can be trusted.
    """
    import os

    # compile, even where a shell is set to interpret; and fuse multiply-adds as the GPU runs do
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    from ..autotune.gpu import ARCHS
    from ..autotune.gpu import arch as known
    from . import ports_cli
    from .ports import KINDS

    try:
        wanted = [known(name).name for name in arch] or list(ARCHS)
    except ValueError as error:
        raise fail(str(error)) from error
    kinds = configs.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise fail(f"no configs named '{unknown[0]}'; there are {', '.join(KINDS)}")
    chosen, workers = choose(ops, sources), jobs or len(os.sched_getaffinity(0))
    if explain:
        raise typer.Exit(ports_cli.explain(chosen, wanted, cases.split(","), explain, sources, as_json))
    if fit:
        raise typer.Exit(ports_cli.fit(chosen, wanted, workers, sources, as_json))
    if foresee:
        raise typer.Exit(ports_cli.foresee(chosen, wanted, foresee, most, limit, workers, save, sources, as_json))
    raise typer.Exit(ports_cli.compile_(chosen, wanted, cases.split(","), kinds, workers, save, diff, sources, as_json))


@app.command()
def port(
    ops: Ops = None,
    limit: Annotated[
        float,
        typer.Option("--time", help="Seconds of this call; 0: no limit. The same command goes on from there."),
    ] = 0.0,
    tune: Annotated[float, typer.Option(help="Seconds of tuning in all; 0 leaves it out.")] = 600.0,
    jobs: Annotated[int, typer.Option(help="Processes that check at the same time; their kernels share the GPU.")] = 6,
    compilers: Annotated[int, typer.Option(help="Processes that compile; 0 is one a core.")] = 0,
    until: Annotated[
        str, typer.Option(help="Stop after this step: doctor, compile, check, bench or tune.", show_default=False)
    ] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Do finished parts again.")] = False,
    to: Annotated[str, typer.Option(help="Where the report goes; perf/results/<gpu>/PORT.md by default.")] = "",
    rehearse: Annotated[
        str,
        typer.Option(help="Go through it on the CPU, writing into this folder; see what would happen.", hidden=True),
    ] = "",
    times: Annotated[str, typer.Option(help="Take times from a landscape file; for a rehearsal.", hidden=True)] = "",
    sources: Sources = [],  # noqa: B006
) -> None:
    """Bring draftwood up on the GPU at hand: doctor, compile, check, bench, tune, and a report for a pull request.

    Configs and results land in autotune/configs/<gpu>/ and perf/results/<gpu>/. Stop it at any time, or give it --time:
    the same command goes on where it was. The exit code is 1 where something was found wrong, 3 where it is not done.
    """
    from ..lab.device import interpret_without_gpu

    interpret_without_gpu()
    import torch

    from . import port as bringing
    from . import port_report

    names = [step.name for step in bringing.STEPS]
    if until and until not in names:
        raise fail(f"no step named '{until}'; there are {', '.join(names)}")
    if tune and find_spec("optuna") is None:
        raise fail("tuning needs optuna; pip install 'draftwood[tune]', or leave it out: --tune 0")
    if rehearse:
        order = bringing.rehearsal(Path(rehearse), times)
    elif torch.cuda.is_available():
        from ..kernels.lib.device import arch as architecture
        from ..kernels.lib.device import slug

        here = torch.device("cuda", 0)
        order = bringing.Order(f"{architecture(here)}-{slug(torch.cuda.get_device_name(here))}")
    else:
        raise fail("no GPU here to bring up; `draftwood ports` compiles for GPUs that are not here")
    named = tuple(choose(ops, sources)) if ops else ()
    order = replace(
        order, ops=named, sources=tuple(sources), limit_s=limit, tune_s=tune, jobs=jobs, compilers=compilers
    )
    done = bringing.journal(order, fresh)
    file = Path(to) if to else order.results / order.gpu / "PORT.md"
    file.parent.mkdir(parents=True, exist_ok=True)

    def report(finished: bool = False) -> None:
        file.write_text(port_report.report(order, done, finished))

    steps = bringing.STEPS[: names.index(until) + 1] if until else bringing.STEPS
    try:
        finished = bringing.run(order, done, steps, report) and steps == bringing.STEPS
    except KeyboardInterrupt:
        finished = False
    report(finished)
    out.print(f"{file}", highlight=False, soft_wrap=True)
    if not finished:
        err.print("not done: the same command goes on", highlight=False)
    raise typer.Exit(3 if not finished else 1 if port_report.bad(done) else 0)


golden = typer.Typer(
    name="golden",
    help="Inputs and right results of every op in one file: check a port where the references do not run.",
    no_args_is_help=True,
)
app.add_typer(golden)


@golden.command()
def export(
    file: Annotated[Path, typer.Argument(help="The bundle to write (.safetensors).")],
    ops: Ops = None,
    cases: Annotated[str, typer.Option(help="Case lists, by comma.")] = "smoke,edge",
    seed: Annotated[int, typer.Option(help="Seed of the inputs.")] = 0,
    sources: Sources = [],  # noqa: B006
) -> None:
    """Write inputs and reference results of every case."""
    from ..lab.device import interpret_without_gpu

    interpret_without_gpu()
    from ..lab import check as lab
    from . import golden as bundles

    work = lab.jobs(choose(ops, sources), cases.split(","), sources, seed)
    size = 0
    for _, added in tables.progress(bundles.export(work, file, sources), len(work), "running references", err):
        size += added
    out.print(f"{file}: {len(work)} cases, {size / 1e6:.1f} MB of tensors", highlight=False)


@golden.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A bundle that `draftwood golden export` wrote.")],
    ops: Ops = None,
    sources: Sources = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Hold the kernels on this machine against a bundle. The exit code is 1 if anything differs."""
    from ..lab.device import interpret_without_gpu

    interpret_without_gpu()
    from ..lab import check as lab
    from ..lab import interpreter
    from . import golden as bundles

    interpreter.install()
    try:
        made = bundles.opened(file)[1]
    except ValueError as error:
        raise fail(str(error)) from error
    chosen = set(choose(ops, sources))
    found: list[Verdict] = []
    import torch

    verdicts = bundles.verify(file, chosen, sources, torch.device(lab.target()))
    total = sum(record["op"] in chosen for record in made["records"])
    for (verdict,) in tables.progress(zip(verdicts, strict=False), total, "verifying", None if as_json else err):
        found.append(verdict)
        if verdict.status != "pass":
            err.print(str(verdict), highlight=False, markup=False)
    failed = sum(verdict.status != "pass" for verdict in found)
    if as_json:
        print(json.dumps([vars(verdict) for verdict in found], indent=0))
    else:
        origin = f"made with torch {made['torch']}, triton {made['triton']}"
        out.print(f"{len(found)} cases of {file.name} ({origin}): {failed} differ", highlight=False)
    raise typer.Exit(1 if failed or not found else 0)


@app.command()
def doctor(sources: Sources = [], as_json: Json = False) -> None:  # noqa: B006
    """Say what this machine can run: GPU, versions, shadowed packages, configs in use, results that are missing or
    stale."""
    from ..lab.device import interpret_without_gpu

    interpret_without_gpu()
    from .doctor import examine

    report = examine(sources)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        for section, facts in report.items():
            table = Table(title=section, title_justify="left", show_header=False)
            table.add_column("what", no_wrap=True)
            table.add_column("found", overflow="fold")
            for what, value in facts.items():
                table.add_row(what, str(value))
            out.print(table)
    raise typer.Exit(1 if report.get("problems") else 0)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def test(ctx: typer.Context) -> None:
    """Run the test suite of a checkout; further arguments go to pytest (draftwood test -k tree -x)."""
    import os
    import subprocess

    from .bench import RESULTS

    root = RESULTS.parent.parent
    if not (root / "tests" / "conftest.py").exists():
        raise fail("there are no tests in an installed package; run this in a checkout")
    if missing := [name for name in ("pytest", "hypothesis", "pytest_benchmark") if find_spec(name) is None]:
        raise fail(f"{', '.join(missing)} not installed; pip install -e '.[test]'")
    cores = len(os.sched_getaffinity(0))
    parallel = (
        ["-n", str(cores)]
        if find_spec("xdist") and cores > 1 and not any(arg.startswith("-n") for arg in ctx.args)
        else []
    )
    raise typer.Exit(subprocess.call([sys.executable, "-m", "pytest", "-q", *parallel, *ctx.args], cwd=root))


app.command()(tune)
app.command()(budget)
app.command("generate")(model_cli.generate)
app.command("train")(pair_cli.train)
app.command("pair")(pair_cli.study)
app.command("bench-model", hidden=True)(model_cli.bench_model)


def main() -> None:
    # `bench model` times a whole model, which is no op: a command of its own
    if sys.argv[1:3] == ["bench", "model"]:
        sys.argv[1:3] = ["bench-model"]
    app()


if __name__ == "__main__":
    main()
