"""Golden bytes of the cache formats: writes formats.npz beside this file.

    pip install gguf==0.19.0 numpy==2.4.6
    python make_formats.py

q8_0 and q4_0 are gguf's. No library makes tq3_0: here it is made a second time, in numpy and f64, from its published
rule alone (a dense Hadamard matrix, signs spelled out, thresholds counted). In f64 a value may fall on the other side
of a threshold than in f32, so rows with a rotated value nearer than 1e-5 to one are left out: all others must agree.
The inputs are `mantissa` (bf16 bits) times `scale` (one f32 a row), multiplied in f32.
"""

from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).parent
# index 0 first
S1 = (
    "-++--+-+--+++++++-+-+--+++-++---" "-++-++-+-++--+-++++-----+-++++-+"
    "--+---+---+---+++--+++--++-++-+-" "-++-+-+-++++-+-++-++-----++-++-+"
)  # fmt: skip
S2 = (
    "++++-++-+---+---++--+-+-+--+-+++" "++---+------+++-+-+++--+------++"
    "+-+----+-+-+--++-+-++-+----+--+-" "+-+++--+-+-++--+-+-++-+-+-----+-"
)  # fmt: skip
CODES = np.array([-0.190685, -0.117832, -0.065717, -0.021460, 0.021460, 0.065717, 0.117832, 0.190685])
BOUNDS = np.array([-0.154259, -0.091775, -0.043589, 0.0, 0.043589, 0.091775, 0.154259])
MARGIN = 1e-5


def hadamard() -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < 128:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(128)


def signs(text: str) -> np.ndarray:
    return np.array([1.0 if sign == "+" else -1.0 for sign in text])


def tq3_0(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a multiple of 128 values -> bytes, and whether every value is clear of the thresholds."""
    groups = x.astype(np.float64).reshape(-1, 128)
    norm = np.linalg.norm(groups, axis=1)
    unit = np.divide(groups, norm[:, None], out=np.zeros_like(groups), where=norm[:, None] > 1e-10)
    y = signs(S2) * ((signs(S1) * unit) @ hadamard())
    code = (y[..., None] >= BOUNDS).sum(-1)
    clear = (np.abs(y[..., None] - BOUNDS).min(axis=(1, 2)) > MARGIN) | (norm <= 1e-10)
    length = np.linalg.norm(CODES[code], axis=1)
    with np.errstate(over="ignore"):
        stored = (norm / length).astype(np.float16)
    # half way between two f16 the last bit is a matter of precision too
    with np.errstate(invalid="ignore"):
        steps = np.abs(norm / length - stored.astype(np.float64)) / np.spacing(np.abs(stored)).astype(np.float64)
    # and infinite scales are no concern here: what compares with them as unequal goes too
    clear &= (np.abs(steps - 0.5) > 1e-3) | (norm <= 1e-10)
    blocks = np.zeros((len(groups), 4, 14), np.uint8)
    blocks[:, :, :2] = stored.view(np.uint8).reshape(-1, 1, 2)
    for block in range(4):
        for j in range(32):
            c = code[:, 32 * block + j]
            blocks[:, block, 2 + j // 4] |= ((c & 3) << 2 * (j % 4)).astype(np.uint8)
            blocks[:, block, 10 + j // 8] |= ((c >> 2) << j % 8).astype(np.uint8)
    return blocks.reshape(len(x), -1), clear.reshape(len(x), -1).all(1)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(20261121)
    ramp = np.arange(256)
    special = [
        np.zeros(256),
        np.where(ramp == 5, 1.0, 0.0),
        np.where(ramp < 128, 0.0, rng.standard_normal(256)),
        np.where(ramp % 2, 1.0, -1.0),
        ramp - 127.5,
        rng.standard_normal(256) + 4,
        rng.standard_normal(256) * np.where(rng.random(256) < 0.02, 60, 1),
        rng.standard_t(2, 256),
    ]
    scales = [1.0, 1e-4, 300.0]
    rows = [row for row in special for _ in scales] + list(rng.standard_normal((160, 256)))
    scale = [s for _ in special for s in scales] + list(10 ** rng.uniform(-3, 2, 160))
    bits = (np.ascontiguousarray(np.array(rows), np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return bits, np.array(scale, np.float32)[:, None]


def main() -> None:
    mantissa, scale = inputs()
    x = (mantissa.astype(np.uint32) << 16).view(np.float32) * scale
    made, clear = tq3_0(x)
    mantissa, scale, x, made = mantissa[clear], scale[clear], x[clear], made[clear]
    kinds = gguf.GGMLQuantizationType
    np.savez_compressed(
        HERE / "formats.npz", mantissa=mantissa, scale=scale, tq3_0=made,
        q8_0=gguf.quantize(x, kinds.Q8_0), q4_0=gguf.quantize(x, kinds.Q4_0),
    )  # fmt: skip
    print(f"{len(x)} rows, {int((~clear).sum())} left out")


if __name__ == "__main__":
    main()
