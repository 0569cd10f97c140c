"""ggml's 8-bit activations against K-quants: writes activations.npz beside this file.

    pip install llama-cpp-python==0.3.36 numpy==2.4.6     (built from source, CPU; it carries libggml-base)
    python make_activations.py

Calls quantize_row_q8_K_ref of libggml-base on the first 130 rows of quantisers.npz.
"""

import ctypes
import importlib.util
from pathlib import Path

import numpy as np

LIBRARY = Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib" / "libggml-base.so"
HERE = Path(__file__).parent
BLOCK = np.dtype([("d", "<f4"), ("q", "i1", 256), ("sums", "<i2", 16)])


def main() -> None:
    golden = np.load(HERE / "quantisers.npz")
    x = np.ascontiguousarray((golden["mantissa"].astype(np.uint32) << 16).view(np.float32) * golden["scale"])[:130]
    out = np.zeros(len(x), BLOCK)
    ctypes.CDLL(str(LIBRARY)).quantize_row_q8_K_ref(
        x.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(x.size)
    )
    np.savez_compressed(HERE / "activations.npz", d=out["d"], q=out["q"])


if __name__ == "__main__":
    main()
