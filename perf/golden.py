"""A golden bundle: inputs and right results of every op and case in one safetensors file.

A port is checked against it on a machine where the references do not run, or run another torch: `verify` calls the
kernels alone and compares with what the file holds. The results are kept twice, as the reference computes them at the
op's own precision and in f64, because the tolerance is calibrated by the distance between the two.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..lab.check import Job
from ..lab.compare import compare
from ..lab.oracles import Verdict, named
from ..reference.ops import Op, registered
from ..reference.spec import Case, map_tensors, raised

SCHEMA = 1


def export(work: list[Job], file: Path, sources: list[str]) -> Iterator[tuple[Job, int]]:
    """Write the bundle; yields each job with the bytes it added."""
    known = registered(sources)
    tensors: dict[str, torch.Tensor] = {}
    records: list[dict[str, Any]] = []
    for number, job in enumerate(work):
        assert job.case
        spec, reference = known[job.op].spec, known[job.op].function("reference")
        inputs = spec.inputs(job.case, torch.Generator().manual_seed(job.seed))
        before = sum(tensor.nbytes for tensor in tensors.values())
        record: dict[str, Any] = {"op": job.op, "case": job.case.as_dict(), "seed": job.seed, "inputs": {}}
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.in.{name}"] = value.clone(memory_format=torch.contiguous_format)
                record["inputs"][name] = {"stride": value.stride()}
            else:
                record["inputs"][name] = {"dtype": str(value)} if isinstance(value, torch.dtype) else {"value": value}
        for kind, given in (("native", map_tensors(inputs, torch.clone)), ("exact", raised(inputs))):
            for name, tensor in named(spec, given, reference(**given)).items():
                tensors[f"{number}.{kind}.{name}"] = tensor.clone(memory_format=torch.contiguous_format)
        records.append(record)
        yield job, sum(tensor.nbytes for tensor in tensors.values()) - before
    made = {"schema": SCHEMA, "torch": torch.__version__, "triton": triton.__version__, "records": records}
    save_file(tensors, file, metadata={"draftwood": json.dumps(made)})


def opened(file: Path) -> tuple[Any, dict[str, Any]]:
    """The bundle and what it says of itself; a ValueError with a sentence where it is none."""
    try:
        bundle = safe_open(file, framework="pt")
        text = (bundle.metadata() or {}).get("draftwood")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no golden bundle: {error}") from error
    if text is None:
        raise ValueError(f"{file} is a safetensors file, but no golden bundle: it has no 'draftwood' entry")
    made = json.loads(text)
    if made["schema"] != SCHEMA:
        raise ValueError(f"{file} is a bundle of schema {made['schema']}; this version reads {SCHEMA}")
    return bundle, made


def verify(file: Path, ops: set[str], sources: list[str], device: torch.device) -> Iterator[Verdict]:
    """Run the kernels on the bundle's inputs; a verdict a case."""
    known = registered(sources)
    bundle, made = opened(file)
    for number, record in enumerate(made["records"]):
        if record["op"] in ops:
            yield _verify(known[record["op"]], bundle, number, record, device)


def _verify(op: Op, bundle: Any, number: int, record: dict[str, Any], device: torch.device) -> Verdict:
    inputs: dict[str, Any] = {}
    for name, kept in record["inputs"].items():
        if "stride" in kept:
            dense = bundle.get_tensor(f"{number}.in.{name}")
            inputs[name] = torch.empty_strided(dense.shape, kept["stride"], dtype=dense.dtype, device=device)
            inputs[name].copy_(dense)
        else:
            value = getattr(torch, kept["dtype"].split(".")[1]) if "dtype" in kept else kept["value"]
            inputs[name] = tuple(value) if isinstance(value, list) else value
    case = Case(tuple(record["case"].items()))
    rules = op.spec.tolerances(case)
    try:
        got = named(op.spec, inputs, op.function("kernels")(**inputs))
    except Exception as error:  # a case that raises is a finding, not the end of the run
        return Verdict(op.name, case.id, record["seed"], "golden", "error", f"{type(error).__name__}: {error}")
    for name in got:
        native, exact = (bundle.get_tensor(f"{number}.{kind}.{name}") for kind in ("native", "exact"))
        if worst := compare(name, got[name].cpu(), native, exact, rules[name]):
            return Verdict(op.name, case.id, record["seed"], "golden", "fail", str(worst))
    return Verdict(op.name, case.id, record["seed"], "golden", "pass")
