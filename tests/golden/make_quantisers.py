"""Golden bytes of ggml's reference quantisers: writes quantisers.npz beside this file.

    pip install llama-cpp-python==0.3.36 numpy==2.4.6     (built from source, CPU; it carries libggml-base)
    python make_quantisers.py

Calls quantize_row_{q8_0,q4_0,q4_K}_ref of libggml-base. The inputs are `mantissa` (bf16 bits) times `scale`
(one f32 a row), multiplied in f32: bf16 halves the file, the scale fills the low bits.
"""

import ctypes
import importlib.util
from pathlib import Path

import numpy as np

LIBRARY = Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib" / "libggml-base.so"
BYTES = {"q8_0": (32, 34), "q4_0": (32, 18), "q4_K": (256, 144)}
HERE = Path(__file__).parent


def bf16(x: np.ndarray) -> np.ndarray:
    """The upper halves of f32 values, cut off."""
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(20261120)
    ramp = np.arange(256)
    special = [
        np.zeros(256),
        np.full(256, 1.0),
        np.full(256, -1.0),
        np.where(ramp < 32, 0.0, rng.standard_normal(256)),
        np.where(ramp % 32 == 5, 3.0, 0.0),
        np.where(ramp % 32 == 5, -3.0, 0.0),
        # ties of magnitude, the negative first or last
        np.where(ramp % 2, 2.0, -2.0),
        np.where(ramp % 2, -2.0, 2.0),
        # halves: 127 fixes the scale of q8_0 at 1, -8 that of q4_0
        np.where(ramp % 32 == 0, 127.0, ramp % 16 - 7.5),
        np.where(ramp % 32 == 0, -8.0, ramp % 16 * 0.5 - 4.0),
        ramp / 16.0,
        -ramp / 16.0,
        ramp - 128.0,
        rng.standard_normal(256) + 6,
        rng.standard_normal(256) - 6,
        # sub-blocks so far apart that the small ones' 6-bit scale is zero
        rng.standard_normal(256) * np.repeat(10.0 ** np.arange(-7, 1), 32),
        rng.standard_normal(256) * np.where(rng.random(256) < 0.03, 40, 1),
    ]
    scales = [1.0, 1e-12, 1e-6, 3.1e-5, 0.7, 1234.5]
    rows = [row for row in special for _ in scales]
    scale = [s for _ in special for s in scales]
    count = 490
    rows += list(rng.standard_normal((count, 256)) * (1 + (rng.random((count, 256)) < 0.004) * 9))
    scale += list(10 ** rng.uniform(-4, 1, count))
    return bf16(np.array(rows)), np.array(scale, np.float32)[:, None]


def main() -> None:
    library = ctypes.CDLL(str(LIBRARY))
    mantissa, scale = inputs()
    x = (mantissa.astype(np.uint32) << 16).view(np.float32) * scale
    made = {"mantissa": mantissa, "scale": scale}
    # the formats of 32 share the special rows and some of the others; they need fewer
    for name, rows in (("q8_0", 130), ("q4_0", 130), ("q4_K", len(x))):
        elements, size = BYTES[name]
        source = np.ascontiguousarray(x[:rows])
        out = np.zeros((rows, 256 // elements * size), np.uint8)
        quantise = getattr(library, f"quantize_row_{name}_ref")
        quantise(
            source.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(source.size)
        )
        made[name.lower()] = out
    np.savez_compressed(HERE / "quantisers.npz", **made)


if __name__ == "__main__":
    main()
