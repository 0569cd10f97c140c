"""Make pair.npz: what llama.cpp says of the target that ships in models/pair.

    python tests/golden/make_pair.py        llama-cpp-python 0.3.36, numpy; no torch

The F16 file, caches in f32, no flash attention, one thread: a few lines of text and the logits after each token.
"""

from pathlib import Path

import numpy as np
from llama_cpp import Llama

HERE = Path(__file__).parent
TEXT = """import os


def names(path):
    for name in sorted(os.listdir(path)):
        if name[0] != 'é':
            yield name
"""

model = Llama(
    str(HERE.parent.parent / "models" / "pair" / "target-f16.gguf"),
    n_ctx=256,
    logits_all=True,
    verbose=False,
    n_threads=1,
    flash_attn=False,
    type_k=0,
    type_v=0,
)
ids = model.tokenize(TEXT.encode(), add_bos=False, special=False)
model.eval(ids)
np.savez_compressed(
    HERE / "pair.npz", text=TEXT, ids=np.array(ids, np.int32), logits=np.array(model.scores[: len(ids)])
)
