"""What every Python carries: the source text of its standard library, split by module, and a small vocabulary for it.

A file belongs to the module at the top of its path, a test of a module to that module: json/decoder.py and
test/test_json/test_decode.py are both `json`. The modules in held_out.txt are never trained on.
"""

import json
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..text import ENDS, bpe

HELD_OUT = Path(__file__).with_name("held_out.txt")
# tables of characters, help texts, and what is not the library's own
LEFT_OUT = {"encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}
END, MASK = ENDS[0], "<|mask|>"
SPECIAL = (END, "<|im_start|>", "<|im_end|>", MASK)
PRE = "qwen35"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, the merges that make them, the special ones last."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]

    @property
    def kinds(self) -> list[int]:
        """GGUF's kinds of tokens: 1 is text, 3 is control."""
        return [3 if token in SPECIAL else 1 for token in self.tokens]

    def id(self, token: str) -> int:
        return self.tokens.index(token)

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """[n] i16: the texts one after another, an end after each."""
        tokenizer = bpe(self.tokens, self.merges, SPECIAL, PRE)
        end, found = self.id(END), []
        # a few at a time: what the tokenizer says of a text takes a hundred times its length
        for i in range(0, len(texts), 64):
            for one in tokenizer.encode_batch_fast(list(texts[i : i + 64]), add_special_tokens=False):
                found.append(torch.tensor([*one.ids, end], dtype=torch.int16))
        return torch.cat(found)


def module(path: Path) -> str:
    """The module that a file of the library belongs to."""
    parts = path.parts[1:] if path.parts[0] == "test" and len(path.parts) > 1 else path.parts
    return Path(parts[0]).stem.removeprefix("test_")


def standard_library(root: Path | None = None, modules: frozenset[str] = frozenset()) -> dict[Path, str]:
    """The source files of the running interpreter's standard library, by their paths from there; of some modules, where
    any are named."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    found = {}
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        if LEFT_OUT & set(path.parts) or (modules and module(path) not in modules):
            continue
        try:
            found[path] = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            # a test of odd encodings, or a link to nowhere
            continue
    return found


def held_out() -> frozenset[str]:
    return frozenset(HELD_OUT.read_text().split())


def divided(files: dict[Path, str]) -> tuple[list[str], list[str]]:
    """Texts to train on, and those of the modules held out, their tests left aside."""
    kept = held_out()
    train = [text for path, text in files.items() if module(path) not in kept and text]
    held = [text for path, text in files.items() if module(path) in kept and path.parts[0] != "test" and text]
    return train, held


def vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """Byte-level BPE as Qwen3.5's splits text: all bytes, then the pairs that stand in the texts most often."""
    from tokenizers import trainers
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = bpe((), (), (), PRE)
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL), initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    ids: dict[str, int] = model["vocab"]
    merges = tuple((left, right) for left, right in model["merges"])
    return Vocabulary((*sorted(ids, key=ids.__getitem__), *SPECIAL), merges)
