"""The small pair that lies beside this file: a target and its draft, trained on Python's standard library.

card.json says of what and how; `draftwood train` makes such a pair anew.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from .gguf import BadFile

FOLDER = Path(__file__).resolve().parent / "pair"
# by what generate and the studies call them
TARGETS = {"f16": "target-f16.gguf", "q4_k_m": "target-q4_k_m.gguf"}
DRAFTS = {"bf16": "draft", "q8_0": "draft-q8_0.gguf"}
# what a newcomer sees the model go on from: the head of no module that it was trained on
PROMPT = '''class Queue:
    """A queue of items, first in, first out."""

    def __init__(self, maxsize=0):
        self.maxsize = maxsize
        self.items = []

    def put(self, item):
        """Add an item."""
        if self.maxsize and len(self.items) >= self.maxsize:
            raise Full

    def get(self):
'''
# the greedy text of so small a model runs in circles without
REPETITION = 1.2


def target(kind: str = "f16", folder: Path = FOLDER) -> Path:
    return _file(TARGETS, kind, folder)


def draft(kind: str = "bf16", folder: Path = FOLDER) -> Path:
    return _file(DRAFTS, kind, folder)


def _file(names: dict[str, str], kind: str, folder: Path) -> Path:
    if kind not in names:
        raise ValueError(f"the pair comes as {', '.join(names)}, not '{kind}'")
    if not (found := folder / names[kind]).exists():
        raise BadFile(f"there is no pair in {folder}; `draftwood train` makes one")
    return found


def card(folder: Path = FOLDER) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return found


def changed(folder: Path = FOLDER) -> list[str]:
    """The files that are not what the card says, or missing."""
    sums = card(folder)["sha256"]
    return [
        name
        for name, wanted in sums.items()
        if not (folder / name).exists() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted
    ]
