"""What breaks ports elsewhere, reproduced by compiling for GPUs that are not here; and that it does not break ours.

Run as a script, this file compiles and prints what came out: pytest has Triton interpret, and a process does either.
"""

import functools
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path
from typing import Any

import pytest
import triton
import triton.language as tl
from draftwood.autotune.foresight import foresee
from draftwood.autotune.gpu import ARCHS
from draftwood.reference.ops import Op, registered
from draftwood.reference.spec import Case

ROOT = Path(__file__).resolve().parent.parent


@triton.jit
def _dot(a, b, c, K, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr):
    o_m, o_n, o_k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BK)
    SUM: tl.constexpr = tl.int32 if a.dtype.element_ty == tl.int8 else tl.float32
    b_c = tl.zeros((M, N), SUM)
    for i_k in range(0, K, BK):
        b_a = tl.load(a + o_m[:, None] * K + i_k + o_k[None, :])
        b_b = tl.load(b + (i_k + o_k)[:, None] * N + o_n[None, :])
        b_c = tl.dot(b_a, b_b, b_c, out_dtype=SUM)
    tl.store(c + o_m[:, None] * N + o_n[None, :], b_c)


@triton.jit
def _cast(x, y, N: tl.constexpr):
    o_n = tl.arange(0, N)
    tl.store(y + o_n, tl.load(x + o_n).to(y.dtype.element_ty))


HALF, BF16, INT8 = ("float16", "float16", "float32"), ("bfloat16", "bfloat16", "float32"), ("int8", "int8", "int32")
F8, F8_FNUZ = ("float32", "float8_e4m3fn"), ("float32", "float8_e4m3fnuz")
TILE = {"M": 128, "N": 256, "BK": 64, "num_warps": 8}
# name -> kernel, types of its pointers, options, architectures
BUILDS = {
    "three stages": (_dot, HALF, {**TILE, "num_stages": 3}, ("gfx1201", "gfx942", "sm120")),
    "two stages": (_dot, HALF, {**TILE, "num_stages": 2}, ("gfx1201",)),
    "bf16": (_dot, BF16, {"M": 16, "N": 32, "BK": 32}, ("sm75", "sm80")),
    "int8": (_dot, INT8, {"M": 16, "N": 32, "BK": 32}, ("sm75", "sm80")),
    "8 rows": (_dot, HALF, {"M": 8, "N": 32, "BK": 32}, ("sm80", "gfx942")),
    "16 rows": (_dot, HALF, {"M": 16, "N": 32, "BK": 32}, ("gfx942",)),
    "8 deep": (_dot, HALF, {"M": 16, "N": 32, "BK": 8}, ("sm90", "gfx942")),
    "fp8": (_cast, F8, {"N": 256}, ("sm80", "sm89")),
    "fp8 fnuz": (_cast, F8_FNUZ, {"N": 256}, ("sm89", "gfx942")),
    "32 warps": (_cast, ("float32", "bfloat16"), {"N": 1024, "num_warps": 32}, ("sm90", "gfx942")),
    "one warp": (_dot, HALF, {"M": 128, "N": 128, "BK": 32, "num_warps": 1}, ("sm80", "sm120")),
}


# a head of 256 in tiles of 64 rows of the cache
HEAD = {"BLOCK_M": 32, "BLOCK_S": 64, "num_warps": 8}
# the same of this repository's own ops: op, values of its first such perf case, config, architectures
OWN = {
    "attention, two stages": ("prefill_attention", {"format_k": "f16"}, {**HEAD, "num_stages": 2}, ("gfx1201",)),
    "attention, one stage": ("prefill_attention", {"format_k": "f16"}, {**HEAD, "num_stages": 1}, ("gfx1201",)),
    "weights, int8": (
        "dequant_matmul",
        {"layout": "gguf", "precision": "int8", "M": 23, "format": "q4_k"},
        {"int8_dot": True, "block_n": 32},
        ("sm75",),
    ),
    "weights, int8 in tiles": (
        "dequant_matmul",
        {"layout": "tiles", "precision": "int8"},
        {"warps": 4},
        ("sm75", "gfx942"),
    ),
    "delta rule, tf32x3": (
        "tree_gdn",
        {"dtype": "f32", "strategy": "wy", "T": 33},
        {"precision": "tf32x3"},
        ("gfx942",),
    ),
}


def own(name: str) -> tuple[Op, Case, Any]:
    op_name, values, config, _ = OWN[name]
    op = registered()[op_name]
    cases = (case for group in ("perf", "qwen35", "edge") for case in op.spec.cases[group])
    case = next(case for case in cases if values.items() <= case.as_dict().items())
    return op, case, op.module("kernels").Config(**config)


def built(name: str, arch: str) -> dict:
    return found()[f"{name} {arch}"]


@functools.cache
def found() -> dict[str, dict]:
    # nothing is read from an earlier run
    with tempfile.TemporaryDirectory() as scratch:
        return _found(scratch)


def _found(scratch: str) -> dict[str, dict]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".typings"), "TRITON_DEFAULT_FP_FUSION": "1"}
    env.pop("TRITON_INTERPRET", None)
    env["XDG_CACHE_HOME"] = str(scratch)
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=env, cwd=ROOT / "tests")
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def _disassembled(cubin: bytes, scratch: Path) -> int:
    file, tool = scratch / "spills.cubin", Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    file.write_bytes(cubin)
    code = subprocess.run([str(tool), "-c", str(file)], capture_output=True, text=True, check=True).stdout
    return len(re.findall(r"\b(?:LDL|STL)\b", code))


def _main() -> None:
    import torch
    from draftwood.autotune import elsewhere
    from draftwood.autotune.binary import measure
    from draftwood.perf.ports import Task, compile_all, sentence
    from triton.backends.compiler import GPUTarget

    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TRITON_CACHE_DIR"] = scratch
        for name, (kernel, types, options, archs) in BUILDS.items():
            tensors = [torch.empty(4096, dtype=getattr(torch, type), device="meta") for type in types]
            sizes = (1024,) if kernel is _dot else ()
            for arch in (ARCHS[arch] for arch in archs):
                elsewhere.claim(GPUTarget(arch.backend, arch.number, arch.warp))
                call = functools.partial(kernel[(1,)], *tensors, *sizes, **options)
                try:
                    (one,) = elsewhere.launches(call)
                    rows[f"{name} {arch.name}"] = measure(one, arch)
                    if name == "one warp":
                        rows[f"{name} {arch.name}"]["disassembled"] = _disassembled(one.asm["cubin"], Path(scratch))
                except Exception as error:
                    rows[f"{name} {arch.name}"] = {"error": sentence(error)}
    for name, (_, _, _, archs) in OWN.items():
        op, case, config = own(name)
        for arch in archs:
            task = Task(op.name, arch, (case.id,), "points", (), (json.dumps(vars(config)),))
            errors = [build.error for build in compile_all(task) if build.error]
            rows[f"{name} {arch}"] = {"error": errors[0] if errors else ""}
    print(json.dumps(rows))


def test_a_tile_whose_stages_are_over_64_kib_does_not_run_on_rdna_and_cdna_and_one_stage_less_does():
    for arch in ("gfx1201", "gfx942"):
        error = built("three stages", arch)["error"]
        assert re.fullmatch(rf"takes \d+ bytes of shared memory, {arch} has 65536", error)
    assert "error" not in built("two stages", "gfx1201") and built("two stages", "gfx1201")["shared"] <= 65536


@pytest.mark.parametrize("name", OWN)
def test_what_breaks_in_our_ops_is_foreseen_in_a_sentence_and_what_does_not_is_not(name):
    op, case, config = own(name)
    for arch in OWN[name][3]:
        error, why = built(name, arch)["error"], foresee(op, case, vars(config), ARCHS[arch])
        assert bool(error) == bool(why), (error, why)
        assert bool(error) == (name != "attention, one stage")
        assert not why or arch in why


def test_what_fits_227_kib_need_not_fit_the_99_of_sm120():
    assert built("three stages", "sm120")["shared"] > 0.9 * ARCHS["sm120"].shared


def test_a_bf16_dot_on_sm75_compiles_to_plain_multiplications():
    assert built("bf16", "sm75")["mma"] == 0 and built("bf16", "sm80")["mma"] > 0
    assert "bf16" not in ARCHS["sm75"].dot and "bf16" in ARCHS["sm80"].dot


def test_an_int8_dot_on_sm75_does_not_compile():
    assert built("int8", "sm75")["error"] and built("int8", "sm80")["mma"] > 0
    assert "i8" in ARCHS["sm75"].refused


def test_a_dot_of_fewer_than_16_rows_leaves_the_matrix_cores_of_cdna_unused():
    assert built("8 rows", "sm80")["mma"] > 0
    assert built("8 rows", "gfx942")["mma"] == 0 and built("16 rows", "gfx942")["mma"] > 0


def test_a_dot_fewer_than_16_deep_does_not_compile_for_nvidia():
    assert "K >= 16" in built("8 deep", "sm90")["error"] and "error" not in built("8 deep", "gfx942")


def test_fp8_has_two_codes_and_neither_is_everywhere_so_no_kernel_uses_it():
    assert "fp8e4nv not supported" in built("fp8", "sm80")["error"] and "error" not in built("fp8", "sm89")
    assert "not supported" in built("fp8 fnuz", "sm89")["error"] and "error" not in built("fp8 fnuz", "gfx942")
    sources = (ROOT / "kernels").rglob("*.py")
    assert not [file for file in sources if re.search(r"float8|fp8", file.read_text())]


def test_more_threads_than_a_program_can_have_compile_and_are_refused_here():
    assert "error" not in built("32 warps", "sm90")
    assert built("32 warps", "gfx942")["error"] == "takes 2048 threads, a program has 1024"


@pytest.mark.parametrize("arch", ["sm80", "sm120"])
def test_what_spills_is_counted_in_the_machine_code_as_nvdisasm_shows_it(arch):
    assert built("one warp", arch)["spills"] == built("one warp", arch)["disassembled"] > 0


@pytest.mark.parametrize("file", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda file: file.stem)
def test_no_kernel_asks_how_wide_a_warp_is_but_in_ptx_for_nvidia_alone(file):
    asked = r"warp_size|warpSize|laneid|num_threads|thread_idx|ballot|shfl|wave(?:32|64)"
    tokens = [(token.type, token.string) for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline)]
    assert not [text for kind, text in tokens if kind == tokenize.NAME and re.search(asked, text)]
    ptx = [text for kind, text in tokens if kind == tokenize.STRING and ";" in text and re.search(asked, text)]
    # PTX is compiled for NVIDIA alone, where a warp is 32: behind a constexpr, or in Gluon of NVIDIA's own instructions
    source = file.read_text()
    chosen = "ASM: tl.constexpr" in source or "from triton.experimental.gluon.language.nvidia" in source
    assert not ptx or (chosen and "inline_asm_elementwise" in source)


if __name__ == "__main__":
    _main()
