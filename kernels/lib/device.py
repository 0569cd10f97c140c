"""What a GPU is called in this repository: sm90-h200, sm86-rtx-3090, gfx942-mi300x."""

import functools
import re

import torch
import triton
from triton.runtime.interpreter import InterpretedFunction

_NOISE = ("nvidia", "amd", "geforce", "tesla", "instinct", "radeon", "graphics", "generation")


@functools.cache
def arch(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm{properties.major}{properties.minor}"


def slug(name: str) -> str:
    """A GPU's marketing name as a folder name: 'AMD Instinct MI50/MI60' -> 'mi50-mi60'."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join(word for word in words if word not in _NOISE) or "unknown"


@functools.cache
def folder(device: torch.device) -> str:
    return f"{arch(device)}-{slug(torch.cuda.get_device_name(device))}"


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU, 132 of one that is not here; 2 for the interpreter, so that shares differ there too."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 2 if device.type == "cpu" else 132


def has_ptx(device: torch.device) -> bool:
    """Whether kernels launched now are compiled for NVIDIA: inline PTX runs there, and not on AMD or in the
    interpreter."""
    return _capability(device) > 0


def has_pdl(device: torch.device) -> bool:
    """Whether a kernel may start before the one it waits for has ended: NVIDIA's programmatic dependent launch."""
    return _capability(device) >= 90


def has_imma(device: torch.device) -> bool:
    """Whether the integer tensor cores take m16n8k32."""
    return _capability(device) >= 80


def lacks_imma(device: torch.device) -> bool:
    """Whether kernels launched now are compiled for a GPU without them. The interpreter takes the instructions' plain
    twins: compiled, those are minutes of the compiler's time and hundreds of registers."""
    return bool(compiled_for(device)) and not has_imma(device)


def lacks_dot(device: torch.device) -> bool:
    """Whether Triton multiplies tiles one number by one there: sm75."""
    return 0 < _capability(device) < 80


def has_few_registers(device: torch.device) -> bool:
    """Whether a lane has no registers to spare for what is loaded ahead: RDNA's 256, accumulators among them."""
    return compiled_for(device).startswith("gfx1")


def is_narrow(device: torch.device) -> bool:
    """Whether a lane's registers do not hold what products of whole rows want: RDNA, and where no tensor cores share
    the rows of a product."""
    return has_few_registers(device) or lacks_dot(device)


def has_wgmma(device: torch.device) -> bool:
    """Whether four warps multiply together what lies in shared memory: sm90 alone."""
    return _capability(device) == 90


def has_much_shared(device: torch.device) -> bool:
    """Whether a program has more than 200 KiB of shared memory: sm90 and sm100."""
    return _capability(device) // 10 in (9, 10)


def compiled_for(device: torch.device) -> str:
    """sm90, gfx942; nothing in the interpreter. The driver is asked, not the tensor's device: a launch may be compiled
    for a GPU that is not here."""
    if device.type == "cpu" or isinstance(_probe, InterpretedFunction):
        return ""
    target = triton.runtime.driver.active.get_current_target()
    return f"sm{target.arch}" if target.backend == "cuda" else str(target.arch)


def _capability(device: torch.device) -> int:
    """90 for sm90; 0 where kernels are not compiled for NVIDIA."""
    name = compiled_for(device)
    return int(name[2:]) if name.startswith("sm") else 0


def multiply(precision: str, device: torch.device) -> str:
    """How f32 are multiplied here (lib/wy.py) where a config says auto: on bf16 tensor cores where there are any and
    registers for three parts of an operand."""
    if precision != "auto":
        return precision
    return "ieee" if is_narrow(device) else "bf16"


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may have; the least of any GPU where it is not known."""
    kilobytes = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
    return kilobytes.get(_capability(device), 64) << 10


@triton.jit
def _probe():
    pass
