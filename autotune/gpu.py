"""What GPUs are: limits by architecture, sizes by model. From data sheets; nothing is asked of a device.

    fact            meaning
    shared          bytes of shared memory (LDS) one program may take
    registers       32-bit registers a thread may hold before it spills
    dot             kinds of `tl.dot` operands that run on tensor (matrix) cores; others are multiplied one by one
    refused         kinds of `tl.dot` operands that Triton does not compile there

A name nobody listed falls back to its architecture, and an architecture nobody listed to the nearest older relative.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Arch:
    """An architecture as Triton targets it."""

    name: str
    backend: str
    warp: int
    shared: int
    registers: int
    dot: tuple[str, ...]
    refused: tuple[str, ...] = ()
    # of a multiprocessor: warps and programs resident, 32-bit registers, shared memory
    warps: int = 64
    programs: int = 32
    file: int = 65536
    pool: int = 0

    @property
    def number(self) -> int | str:
        """What triton's GPUTarget calls it: 90, or gfx942."""
        return int(self.name[2:]) if self.backend == "cuda" else self.name


# of a program, everywhere
THREADS = 1024
_KIB = 1024
_HALF = ("f16", "bf16")

ARCHS: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        Arch("sm75", "cuda", 32, 64 * _KIB, 255, (), ("i8",), warps=32, programs=16, pool=64 * _KIB),
        Arch("sm80", "cuda", 32, 163 * _KIB, 255, (*_HALF, "i8"), pool=164 * _KIB),
        Arch("sm86", "cuda", 32, 99 * _KIB, 255, (*_HALF, "i8"), warps=48, programs=16, pool=100 * _KIB),
        Arch("sm89", "cuda", 32, 99 * _KIB, 255, (*_HALF, "i8", "f8"), warps=48, programs=24, pool=100 * _KIB),
        Arch("sm90", "cuda", 32, 227 * _KIB, 255, (*_HALF, "i8", "f8"), pool=228 * _KIB),
        Arch("sm100", "cuda", 32, 227 * _KIB, 255, (*_HALF, "i8", "f8"), pool=228 * _KIB),
        Arch("sm120", "cuda", 32, 99 * _KIB, 255, (*_HALF, "i8", "f8"), warps=48, programs=24, pool=100 * _KIB),
        Arch("gfx90a", "hip", 64, 64 * _KIB, 512, (*_HALF, "i8"), warps=32, pool=64 * _KIB),
        Arch("gfx942", "hip", 64, 64 * _KIB, 512, (*_HALF, "i8", "f8"), warps=32, pool=64 * _KIB),
        Arch("gfx950", "hip", 64, 160 * _KIB, 512, (*_HALF, "i8", "f8"), warps=32, pool=160 * _KIB),
        Arch("gfx1100", "hip", 32, 64 * _KIB, 256, (*_HALF, "i8"), warps=64, pool=64 * _KIB),
        Arch("gfx1151", "hip", 32, 64 * _KIB, 256, (*_HALF, "i8"), warps=64, pool=64 * _KIB),
        Arch("gfx1201", "hip", 32, 64 * _KIB, 256, (*_HALF, "i8", "f8"), warps=64, pool=64 * _KIB),
    )
}


@dataclass(frozen=True)
class Gpu:
    """A model: multiprocessors (compute units) and memory bandwidth in GB/s."""

    name: str
    arch: str
    units: int
    gb_s: int


# the first pattern found in a lower-case name decides: longer names stand before those they contain
_MODELS: tuple[tuple[str, Gpu], ...] = tuple(
    (pattern, Gpu(name, arch, units, gb_s))
    for pattern, name, arch, units, gb_s in (
        (r"\bt4\b", "T4", "sm75", 40, 320),
        (r"2080 ti", "RTX 2080 Ti", "sm75", 68, 616),
        (r"a100.*80", "A100 80GB", "sm80", 108, 2039),
        (r"a100", "A100 40GB", "sm80", 108, 1555),
        (r"3090 ti", "RTX 3090 Ti", "sm86", 84, 1008),
        (r"3090", "RTX 3090", "sm86", 82, 936),
        (r"\ba10g?\b", "A10", "sm86", 72, 600),
        (r"\ba40\b", "A40", "sm86", 84, 696),
        (r"\ba6000\b", "RTX A6000", "sm86", 84, 768),
        (r"4090", "RTX 4090", "sm89", 128, 1008),
        (r"\bl40s\b", "L40S", "sm89", 142, 864),
        (r"\bl4\b", "L4", "sm89", 58, 300),
        (r"h200|gh200", "H200", "sm90", 132, 4800),
        (r"h100.*pcie", "H100 PCIe", "sm90", 114, 2039),
        (r"h100", "H100", "sm90", 132, 3352),
        (r"b200", "B200", "sm100", 148, 8000),
        (r"5090", "RTX 5090", "sm120", 170, 1792),
        (r"pro 6000 blackwell", "RTX PRO 6000 Blackwell", "sm120", 188, 1792),
        (r"mi2[15]0x?", "MI210 (one die of MI250)", "gfx90a", 104, 1638),
        (r"mi300x", "MI300X", "gfx942", 304, 5325),
        (r"mi325x", "MI325X", "gfx942", 304, 6000),
        (r"mi35[05]x", "MI350X", "gfx950", 256, 8000),
        (r"7900 xtx", "RX 7900 XTX", "gfx1100", 96, 960),
        (r"8060s|strix halo", "Radeon 8060S", "gfx1151", 40, 256),
        (r"9070 xt", "RX 9070 XT", "gfx1201", 64, 640),
    )
)


def find(name: str) -> Gpu | None:
    """The model of a marketing name ('NVIDIA H200', 'AMD Instinct MI300X OAM'), or None where nobody listed it."""
    plain = re.sub(r"[^a-z0-9]+", " ", name.lower())
    return next((gpu for pattern, gpu in _MODELS if re.search(pattern, plain)), None)


def arch(name: str) -> Arch:
    """An architecture by name; sm_90 and sm90a are sm90. One nobody listed takes the limits of the nearest older
    relative, or of the oldest."""
    plain = re.sub(r"_|:.*", "", name.lower())
    plain = re.sub(r"^(sm\d+)[af]$", r"\1", plain)
    if plain in ARCHS:
        return ARCHS[plain]
    # wave64 gfx9.., wave32 gfx1...: each a family of its own
    family = next((known[:4] for known in ("gfx9", "gfx1", "sm") if re.fullmatch(rf"{known}[0-9a-f]+", plain)), "")
    relatives = [known for known in ARCHS if family and known.startswith(family)]
    if not relatives:
        raise ValueError(f"no architecture named '{name}'; there are {', '.join(ARCHS)}")
    older = [known for known in relatives if _order(known) <= _order(plain)]
    return ARCHS[older[-1] if older else relatives[0]]


def _order(name: str) -> int:
    return int(name[2:]) if name.startswith("sm") else int(name[3:], 16)
