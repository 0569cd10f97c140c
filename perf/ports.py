"""Compile every kernel for every architecture on a machine that has none of them, and say what came out.

    SPEC.inputs ──fake tensors──> launcher ──> JITFunction.run ──warm-up under a driver that claims to be the target
                                                    └──> cubin / amdgcn ──> registers, spills, shared memory, …

The launcher itself runs, on tensors with shapes and no memory: what is compiled is what would be launched there, with
the same specialisation. A report is kept under the user's cache directory by the hash of the op's sources, so that a
second call reads files.
"""

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from ..autotune.gpu import ARCHS, Arch
from ..kernels.config import CONFIGS
from ..reference.ops import Op, registered
from ..reference.spec import Case, map_tensors

COMMITTED = Path(__file__).resolve().parent / "results" / "ports.json"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "draftwood" / "ports"
KINDS = ("default", "tuned", "edge")
# of the cached reports: raise it when `measure` changes
SCHEMA = 1


@dataclass(frozen=True)
class Build:
    """One compiled kernel, or the sentence of why there is none.

    spills: loads and stores of spilled registers (NVIDIA), spilled vector registers (AMD). mma: tensor-core
    instructions. convert: conversions from integers. occupancy: share of a multiprocessor's warps that can be resident.
    """

    op: str
    arch: str
    case: str
    config: dict[str, Any]
    kernel: str
    shared: int = 0
    registers: int = 0
    spills: int = 0
    code: int = 0
    mma: int = 0
    convert: int = 0
    occupancy: float = 0.0
    error: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        return (self.op, self.arch, self.kernel, self.case, json.dumps(self.config, sort_keys=True))


@dataclass(frozen=True)
class Task:
    op: str
    arch: str
    cases: tuple[str, ...]
    kind: str
    sources: tuple[str, ...]


class _Claimed(DriverBase):
    """A driver without a device. Each target has an index of its own: Triton keeps kernels by device."""

    def __init__(self, arch: Arch):
        self.index = list(ARCHS).index(arch.name)
        self.target = GPUTarget(arch.backend, arch.number, arch.warp)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_current_device(self) -> int:
        return self.index

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("there is no device to time on")


@contextmanager
def claiming(arch: Arch) -> Iterator[list[Any]]:
    """Inside, launches compile for `arch` and return; the compiled kernels are collected. For processes that launch
    nothing else: the claim stays."""
    found: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(run(self, *args, **{**kwargs, "warmup": True}))
        return found[-1]

    JITFunction.run = compile_only
    triton.runtime.driver.set_active(_Claimed(arch))
    try:
        yield found
    finally:
        JITFunction.run = run


def shapes(op: Op, case: Case) -> dict[str, Any]:
    """The case's inputs as tensors of shape, stride and type alone."""
    generator = torch.Generator().manual_seed(0)
    try:
        with FakeTensorMode():
            inputs = op.spec.inputs(case, generator)
    except DataDependentOutputException:
        # trees are drawn number by number
        inputs = op.spec.inputs(case, torch.Generator().manual_seed(0))
    return map_tensors(inputs, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"))


def configs(op: Op, case: Case, arch: str, kind: str) -> list[Any]:
    """None for the defaults; the committed winners; or the ends of each knob's range around the defaults."""
    if kind == "default" or not op.has("autotune"):
        return [None] if kind == "default" else []
    default = op.module("kernels").Config()
    if kind == "tuned":
        files = CONFIGS.glob(f"{arch}-*/{op.name}.json")
        held = [entry["config"] for file in sorted(files) for entry in json.loads(file.read_text())["entries"]]
        unique = {json.dumps(config, sort_keys=True): config for config in held}
        return [dataclasses.replace(default, **config) for config in unique.values()]
    module = op.module("autotune")
    ends = [{**vars(default), knob: end} for knob, values in module.SPACE.items() for end in (values[0], values[-1])]
    known = {field.name for field in dataclasses.fields(default)}
    points = [{k: v for k, v in point.items() if k in known} for point in ends]
    legal = [point for point in points if module.legal({k: point[k] for k in module.SPACE}, case, arch) is None]
    return [type(default)(**point) for point in {json.dumps(p, sort_keys=True): p for p in legal}.values()]


def compile_all(task: Task) -> list[Build]:
    """Every kernel that the cases launch, once; read from the cache where the op's sources are unchanged."""
    op = registered(list(task.sources))[task.op]
    file = CACHE / f"{_fingerprint(op, task)}.json"
    if file.exists():
        return [Build(**row) for row in json.loads(file.read_text())]
    arch = ARCHS[task.arch]
    by_id = {case.id: case for group in op.spec.cases.values() for case in group}
    builds: list[Build] = []
    seen: set[str] = set()
    for case in (by_id[name] for name in task.cases):
        inputs = shapes(op, case)
        for config in configs(op, case, task.arch, task.kind):
            row = functools.partial(Build, op.name, arch.name, case.id, dict(vars(config)) if config else {})
            with claiming(arch) as compiled:
                try:
                    op.function("kernels")(**inputs, **({"config": config} if config else {}))
                    error = None
                except Exception as raised:  # whatever the compiler throws is the finding
                    error = sentence(raised)
            for kernel in compiled:
                if kernel.hash not in seen:
                    seen.add(kernel.hash)
                    builds.append(row(kernel.metadata.name, **measure(kernel, arch)))
            if error and error not in seen:
                seen.add(error)
                builds.append(row("", error=error))
    file.parent.mkdir(parents=True, exist_ok=True)
    # a half-written file must not be taken for a report
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as draft:
        json.dump([dataclasses.asdict(build) for build in builds], draft)
    os.replace(draft.name, file)
    return builds


def measure(kernel: Any, arch: Arch) -> dict[str, Any]:
    """What the finished binary says of itself."""
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    facts = _nvidia(kernel.asm["cubin"]) if arch.backend == "cuda" else _amd(kernel.asm["amdgcn"])
    facts |= {
        "shared": shared,
        "occupancy": facts.get("occupancy") or occupancy(arch, facts["registers"], shared, warps),
    }
    if shared > arch.shared:
        facts["error"] = f"takes {shared} bytes of shared memory, {arch.name} has {arch.shared}"
    return facts


def occupancy(arch: Arch, registers: int, shared: int, warps: int) -> float:
    """Resident warps over the most there can be, by registers (in steps of 256 a warp), shared memory and programs."""
    a_warp = -(-max(registers, 1) * 32 // 256) * 256
    by_registers = 4 * (arch.file // 4 // a_warp) // warps
    reserved = 0 if arch.name == "sm75" else 1024
    by_shared = arch.pool // (shared + reserved) if shared + reserved else arch.programs
    return round(min(arch.programs, arch.warps // warps, by_registers, by_shared) * warps / arch.warps, 3)


def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _nvidia(cubin: bytes) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([_tool(tool), flag, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),  # type: ignore[index]
        # LOCAL is 0 even where registers were spilled
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "code": 16 * len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.M)),
        "mma": len(re.findall(r"\b(?:HMMA|HGMMA|IMMA|IGMMA|QMMA|QGMMA|UTC[A-Z]*MMA)\b", code)),
        "convert": len(re.findall(r"\bI2F", code)),
    }


def _amd(text: str) -> dict[str, Any]:
    def number(pattern: str) -> int:
        match = re.search(pattern, text)
        return int(match[1]) if match else 0

    return {
        "registers": number(r"\.vgpr_count:\s+(\d+)"),
        "spills": number(r"\.vgpr_spill_count:\s+(\d+)"),
        "code": number(r"; codeLenInByte = (\d+)"),
        "mma": len(re.findall(r"\bv_(?:s?mfma|s?wmma)", text)),
        "convert": len(re.findall(r"\bv_cvt_f(?:32|16)_[iu]", text)),
        "occupancy": number(r"; Occupancy: (\d+)") / (8 if "wavefront_size64" in text else 16),
    }


def sentence(error: Exception) -> str:
    """The last line of the innermost cause: the compiler's own words."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:200]


def _fingerprint(op: Op, task: Task) -> str:
    root = Path(op.module("kernels").__file__).resolve().parent.parent  # type: ignore[arg-type]
    parts = [*(root / "kernels" / "lib").glob("*.py"), *(root / "reference").glob("*.py")]
    parts += [root / folder / f"{op.name}.py" for folder in ("kernels", "autotune")] + [root / "kernels" / "config.py"]
    parts += CONFIGS.glob(f"{task.arch}-*/{op.name}.json") if task.kind == "tuned" else []
    digest = hashlib.sha256(repr((SCHEMA, task, triton.__version__, ARCHS[task.arch])).encode())
    for part in sorted(part for part in parts if part.exists()):
        digest.update(part.read_bytes())
    return digest.hexdigest()[:32]


def tasks(
    ops: Iterable[str], archs: Iterable[str], groups: list[str], kinds: list[str], sources: list[str]
) -> list[Task]:
    """One task an op and architecture, the long ones first."""
    known = registered(sources)
    found = []
    for name in ops:
        cases = tuple(case.id for group in groups for case in known[name].spec.cases[group])
        if known[name].has("kernels") and cases:
            found += [Task(name, arch, cases, kind, tuple(sources)) for arch in archs for kind in kinds]
    return sorted(found, key=lambda task: -len(task.cases))


def run(work: list[Task], workers: int) -> Iterator[tuple[Task, list[Build]]]:
    """Compile in processes of their own, as they finish."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(compile_all, task): task for task in work}
        for done in as_completed(futures):
            yield futures[done], done.result()


def save(builds: list[Build], seconds: float, file: Path = COMMITTED) -> None:
    head = {"schema": 1, "triton": triton.__version__, "seconds": round(seconds)}
    rows = [json.dumps(_row(build)) for build in sorted(builds, key=lambda build: build.key)]
    file.write_text(json.dumps(head)[:-1] + ', "builds": [\n' + ",\n".join(rows) + "\n]}\n")


def _row(build: Build) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(build).items() if value not in ("", 0, 0.0, {})}


def load(file: Path = COMMITTED) -> list[Build]:
    rows = json.loads(file.read_text())["builds"] if file.exists() else []
    return [Build(**{"config": {}, "kernel": "", **row}) for row in rows]


def worse(now: list[Build], before: list[Build]) -> list[str]:
    """A sentence for every kernel that stopped compiling, or began to spill, since `before`."""
    held = {build.key: build for build in before}
    found = []
    for build in now:
        old = held.get(build.key)
        where = f"{build.op} on {build.arch}, {build.case}"
        if build.error and not (old and old.error):
            found.append(f"{where}: {build.error}")
        elif build.spills and old and not old.spills and not old.error:
            found.append(f"{where}: {build.kernel} spills now ({build.spills})")
    return found


def cell(builds: list[Build]) -> str:
    """Kernels compiled over kernels tried, and how many of them spill."""
    good = [build for build in builds if not build.error]
    spilled = sum(build.spills > 0 for build in good)
    return f"{len(good)}/{len(builds)}" + (f", {spilled} spill" if spilled else "") if builds else "–"


def page(builds: list[Build], seconds: float) -> str:
    """PORTS.md: which kernel compiles where, what fails, and what the kernels take."""
    archs = [arch for arch in ARCHS if any(build.arch == arch for build in builds)]
    ops = sorted({build.op for build in builds})
    failed = [build for build in builds if build.error]

    def of(op: str, arch: str) -> list[Build]:
        return [build for build in builds if build.op == op and build.arch == arch]

    def row(*cells: object) -> str:
        return "| " + " | ".join(map(str, cells)) + " |"

    lines = [
        "# Ports",
        "",
        f"Written by `draftwood ports --save` with triton {triton.__version__}: {len(builds)} kernels (distinct",
        f"specialisations of the perf cases) for {len(archs)} architectures in {seconds:.0f} s, without any of the",
        f"GPUs. {len(failed)} did not compile. That a kernel compiles says nothing about its results or its speed:",
        "PORTING.md says how those are checked.",
        "",
        "## Compiled / tried",
        "",
        row("op", *archs),
        row("---", *("---:" for _ in archs)),
        *(row(op, *(cell(of(op, arch)) for arch in archs)) for op in ops),
        "",
        "## What they take",
        "",
        "Largest registers a thread · largest shared memory in KiB · kernels that use tensor (matrix) cores.",
        "",
        row("op", *archs),
        row("---", *("---:" for _ in archs)),
    ]
    for op in ops:
        cells = []
        for arch in archs:
            good = [build for build in of(op, arch) if not build.error]
            most = [max((getattr(build, fact) for build in good), default=0) for fact in ("registers", "shared")]
            cells.append(f"{most[0]} · {most[1] / 1024:.0f} · {sum(build.mma > 0 for build in good)}")
        lines.append(row(op, *cells))
    if failed:
        lines += ["", "## What does not compile", "", row("op", "architecture", "case", "why"), row(*["---"] * 4)]
        lines += [
            row(b.op, b.arch, f"`{b.case}`", b.error.replace("|", "/")) for b in sorted(failed, key=lambda b: b.key)
        ]
    return "\n".join(lines) + "\n"
