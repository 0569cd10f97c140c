"""A trained pair as files: the target in F16 and as a Q4_K_M mix, the draft in BF16 and Q8_0, and the card that says
what they are made of.

    target-f16.gguf  target-q4_k_m.gguf  draft/{model.safetensors, config.json}  draft-q8_0.gguf  card.json  loss.svg
"""

import hashlib
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import draft as dflash
from .. import export, qwen35
from . import corpus, network
from .corpus import Vocabulary
from .network import Weights

NAME = "draftwood pair"
FILES = (
    "target-f16.gguf",
    "target-q4_k_m.gguf",
    "draft/config.json",
    "draft/model.safetensors",
    "draft-q8_0.gguf",
    "loss.svg",
)
LIMIT = 12 << 20
# of the plot
WIDTH, HEIGHT, EDGE = 640, 300, 40


def write(
    folder: Path,
    target: tuple[qwen35.Config, Weights],
    draft: tuple[dflash.Config, Weights],
    words: Vocabulary,
    facts: Mapping[str, Any],
) -> list[Path]:
    """All files of the pair; `facts` go into the card. What is quantised is what the F16 target and the BF16 draft
    hold."""
    folder.mkdir(parents=True, exist_ok=True)
    c, weights = target[0], network.stored(target[1])
    weights = {name: value.half().float() if matrix(name, value) else value for name, value in weights.items()}
    draft = draft[0], {name: value.bfloat16().float() for name, value in draft[1].items()}
    text = export.tokenizer_metadata(words.tokens, words.merges, words.kinds, words.id(corpus.END), corpus.PRE)
    export.target(folder / "target-f16.gguf", c, weights, text, f"{NAME} target", export.all_in("f16"), "f16")
    mix = export.mixed(qwen35.q4_k_m, c.tied)
    export.target(folder / "target-q4_k_m.gguf", c, weights, text, f"{NAME} target", mix, "q4_k_m")
    export.draft_gguf(folder / "draft-q8_0.gguf", *draft, f"{NAME} draft", export.all_in("q8_0"), "q8_0")
    export.draft_safetensors(folder / "draft", *draft)
    (folder / "loss.svg").write_text(plot(facts["target"]["log"], facts["draft"]["log"]))
    files = [folder / name for name in FILES]
    if (size := sum(file.stat().st_size for file in files)) > LIMIT:
        raise ValueError(f"the pair takes {size} bytes, more than the {LIMIT} that it may")
    sums = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    card(folder, {"schema": 1, **facts, "sha256": sums})
    (folder / "CARD.md").write_text(page(json.loads((folder / "card.json").read_text())))
    return files


def matrix(name: str, value: torch.Tensor) -> bool:
    """Whether files hold it in another format than f32."""
    return value.dim() == 2 and "conv1d" not in name


def card(folder: Path, facts: Mapping[str, Any]) -> None:
    """One fact a line."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items())
    (folder / "card.json").write_text("{\n" + lines + "\n}\n")


def page(facts: Mapping[str, Any]) -> str:
    """The card for people."""
    data, recipe, target, draft = (facts[name] for name in ("data", "recipe", "target", "draft"))
    c, d, sizes, lengths = target["config"], draft["config"], recipe["sizes"], draft["accept_length"]
    shares = " / ".join(f"{share:.0%}" for share in draft["accuracy_of_rows_1_2_4_8_15"])
    paragraphs = (
        f"A target of {target['parameters']:,} parameters of the architecture of Qwen3.5 and its DFlash draft of "
        f"{draft['parameters']:,}. They write Python that looks like Python and means nothing: made to test decoding.",
        f"**Data.** The source text of {data['source']}: {data['files']} files, {data['trained_tokens']:,} tokens of a "
        f"byte-level BPE of {c['vocab']}. Held out, with their tests: {', '.join(data['held_out'])}.",
        f"**Target.** {c['L']} layers, three gated delta nets ({c['Hk']} key heads, {c['Hv']} value heads of {c['V']}) "
        f"to a gated attention ({c['H']} heads over {c['Hkv']} of {c['D']}), hidden {c['E']}. {target['steps']:,} "
        f"steps of {sizes['B']} x {sizes['T']} tokens. Held-out loss {target['held_out_loss']} nats a token, "
        f"{target['held_out_bits_per_character']} bits a character.",
        f"**Draft.** {d['L']} layers, blocks of {d['block']}, features of the target's layers "
        f"{', '.join(map(str, d['captured']))}. {draft['steps']:,} steps on {sizes['texts']:,} texts that the target "
        f"wrote. Of what the target writes after {sizes['longest'] // 2} held-out tokens, {sizes['T_draft']} in all, "
        f"its rows 1 / 2 / 4 / 8 / 15 name the right token in {shares} of blocks; tokens a step: chain "
        f"{lengths['chain']}, tree of 22 {lengths['tree']}. The longer such a text, the more it runs in circles, which "
        "is easy to foresee: `draftwood pair modes` looks at shorter ones.",
        f"**Recipe.** `{recipe['command']}`, {recipe['seconds']:.0f} s on {recipe['device']}, torch {recipe['torch']}.",
    )
    text = "\n\n".join(textwrap.fill(one, 120, break_on_hyphens=False) for one in paragraphs)
    sums = "\n".join(f"| `{name}` | `{digest}` |" for name, digest in facts["sha256"].items())
    return f"# {facts['name']}\n\n{text}\n\n![losses](loss.svg)\n\n| file | sha256 |\n|---|---|\n{sums}\n"


def plot(target: list[dict[str, Any]], draft: list[dict[str, Any]]) -> str:
    """Losses over time, an SVG: the target's, trained and held out; the draft's; its accept lengths."""
    panels = [
        panel(0, "target: nats a token", {"trained": _line(target, "loss"), "held out": _line(target, "held_out")}),
        panel(1, "draft: weighted nats a row", {"loss": _line(draft, "loss")}),
        panel(2, "draft: tokens a step, held out", {"tree": _line(draft, "tree"), "chain": _line(draft, "chain")}),
    ]
    size = f'width="{3 * WIDTH // 2}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12" fill="none"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>' + "".join(panels) + "</svg>\n"


def _line(log: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["seconds"], row[key]) for row in log if key in row]


def panel(place: int, title: str, lines: Mapping[str, list[tuple[float, float]]]) -> str:
    points = [point for line in lines.values() for point in line] or [(0.0, 0.0)]
    last, low, high = max(x for x, _ in points), min(y for _, y in points), max(y for _, y in points)
    left, wide = place * WIDTH / 2 + EDGE, WIDTH / 2 - 1.5 * EDGE

    def at(x: float, y: float) -> str:
        down = EDGE + (HEIGHT - 2 * EDGE) * (high - y) / (high - low or 1)
        return f"{left + wide * x / (last or 1):.1f},{down:.1f}"

    parts = [f'<text x="{left}" y="20" fill="#444">{title}</text>']
    parts += [f'<text x="{left - 34}" y="{at(0, y).split(",")[1]}" fill="#444">{y:.2f}</text>' for y in (low, high)]
    parts.append(f'<text x="{left + wide - 20}" y="{HEIGHT - 12}" fill="#444">{last:.0f} s</text>')
    for (name, line), color in zip(lines.items(), ("#1f6fb4", "#d1602a"), strict=False):
        path = " ".join(at(x, y) for x, y in line)
        parts.append(f'<polyline points="{path}" stroke="{color}" stroke-width="1.5"/>')
        below = 36 + 14 * list(lines).index(name)
        parts.append(f'<text x="{left + wide - 60}" y="{below}" fill="{color}">{name}</text>')
    return "".join(parts)
