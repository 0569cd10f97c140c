"""What a finished kernel binary says of itself: registers, spills, instructions, and how many of its programs fit.

fact        NVIDIA (cubin)                              AMD (amdgcn)
registers   cuobjdump                                   .vgpr_count, accumulation registers included
spills      loads and stores of spilled registers       .vgpr_spill_count
mma         HMMA, HGMMA, IMMA, … in the machine code    v_mfma, v_wmma
convert     conversions from integers                   the same
occupancy   share of the warps a multiprocessor can hold, and what it is bound by
"""

import re
import struct
from collections.abc import Iterator
from typing import Any

from .gpu import THREADS, Arch


def measure(kernel: Any, arch: Arch) -> dict[str, Any]:
    """What the finished binary says of itself; a sentence under 'error' where it cannot be launched."""
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    facts = _nvidia(kernel.asm["cubin"], kernel.asm["ptx"]) if arch.backend == "cuda" else _amd(kernel.asm["amdgcn"])
    share, bound = occupancy(arch, facts["registers"], shared, warps, facts.pop("resident", 0))
    facts |= {"shared": shared, "occupancy": share, "bound": bound}
    if shared > arch.shared:
        facts["error"] = f"takes {shared} bytes of shared memory, {arch.name} has {arch.shared}"
    if warps * arch.warp > THREADS:
        facts["error"] = f"takes {warps * arch.warp} threads, a program has {THREADS}"
    return facts


def serial(said: str) -> str:
    """Of what ptxas -v says, why products of wgmma wait for each other, if they do: it is no error and no spill."""
    wait = r"\((C75\d\d)\).* wgmma\S* instructions are serialized due to (.*?) (?:in|for) (?:the )?function"
    found = re.search(wait, said)
    return f"{found[1]}, {found[2]}" if found else ""


def occupancy(arch: Arch, registers: int, shared: int, warps: int, resident: int = 0) -> tuple[float, str]:
    """Resident warps over the most there can be, and what runs out first.

    By registers (in steps of 256 a warp) or, where the compiler says so, `resident` warps to a SIMD; by shared memory;
    by programs.
    """
    reserved = 1024 if arch.backend == "cuda" and arch.name != "sm75" else 0
    a_warp = -(-max(registers, 1) * 32 // 256) * 256
    programs = {
        "warps": arch.warps // warps,
        "registers": 4 * resident // warps if resident else 4 * (arch.file // 4 // a_warp) // warps,
        "shared": arch.pool // (shared + reserved) if shared + reserved else arch.programs,
        "programs": arch.programs,
    }
    bound = min(programs, key=lambda name: programs[name])
    return round(programs[bound] * warps / arch.warps, 3), bound


# of the entries of a cubin's .nv.info: what follows is (function, value)
_REGISTERS, _FRAME = 0x2F, 0x11
# of machine code from sm75 on: loads and stores of local memory
_LDL, _STL = 0x983, 0x387


def _nvidia(cubin: bytes, ptx: str) -> dict[str, Any]:
    found = {_REGISTERS: 0, _FRAME: 0}
    code = b""
    for name, content in _sections(cubin):
        code += content if name.startswith(".text.") else b""
        for entry, value in _entries(content) if name == ".nv.info" else ():
            found[entry] = max(found.get(entry, 0), value)
    return {
        "registers": found[_REGISTERS],
        # what is spilled lies in the frame: without one, there is no need to read the machine code
        "spills": _spilled(code) if found[_FRAME] else 0,
        "code": len(code),
        "mma": len(re.findall(r"\b(?:wmma\.mma|mma\.sync|wgmma\.mma_async|tcgen05\.mma)", ptx)),
        "convert": len(re.findall(r"\bcvt(?:\.\w+)*?\.f(?:16|32)\.[su](?:8|16|32)", ptx)),
    }


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", elf, table + number * size) for number in range(count)]
    for name, _, _, _, offset, length in heads:
        start = heads[names][4] + name
        yield elf[start : elf.index(b"\0", start)].decode(), elf[offset : offset + length]


def _entries(info: bytes) -> Iterator[tuple[int, int]]:
    """Entries of form 4: (form, what, bytes that follow), then a function's number and a value."""
    at = 0
    while at + 4 <= len(info):
        form, what, length = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == 4:
            if length == 8:
                yield what, struct.unpack_from("<I", info, at + 4)[0]
            at += length


def _spilled(code: bytes) -> int:
    """Of instructions of 16 bytes, whose lowest twelve bits say what they are. nvdisasm counts the same, in half a
    second."""
    return sum(word & 0xFFF in (_LDL, _STL) for word, _ in struct.iter_unpack("<H14s", code))


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
        "resident": number(r"; Occupancy: (\d+)"),
    }
