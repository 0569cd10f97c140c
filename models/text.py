"""Tokens and text: the tokenizer and the chat template that a GGUF carries.

Qwen3.5's tokenizer is byte-level BPE over Unicode in NFC: letters take their combining marks with them, digits stand
alone. Its chat template is Jinja; without one in the file, the ChatML that it amounts to.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .gguf import BadFile, File

NEEDED = "reading text needs the tokenizers package: pip install 'draftwood[model]'"
# per name of tokenizer.ggml.pre; in qwen2's, marks are not letters
SPLIT = {
    "qwen35": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
# kinds of tokens that are matched whole, before the text is split: control, and what a user added
CONTROL, ADDED = 3, 4
# tokens that one character may be spread over
LONGEST_CHARACTER = 4
# names of the tokens that end a turn or a text
ENDS = ("<|endoftext|>", "<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)


@dataclass(frozen=True)
class Text:
    """A tokenizer, the ids that end a text, and a chat template."""

    tokenizer: Any
    ends: frozenset[int]
    template: str
    size: int

    def encode(self, text: str) -> list[int]:
        """Ids of text, control tokens in it recognised; nothing is put before or after it."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        found: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return found

    def chat(self, messages: Sequence[Mapping[str, str]], thinking: bool = True) -> str:
        """The messages as the model was trained to see them, up to where its answer begins."""
        import jinja2
        import jinja2.sandbox

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            template = environment.from_string(self.template)
            return template.render(messages=messages, add_generation_prompt=True, enable_thinking=thinking)
        except jinja2.TemplateError as error:
            raise BadFile(f"the chat template does not take these messages: {error}") from error


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def bpe(tokens: Sequence[str], pairs: Sequence[tuple[str, str]], whole: Sequence[str], pre: str) -> Any:
    """A byte-level BPE of tokens by id and merges; tokens in `whole` are matched before the text is split."""
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    except ModuleNotFoundError as error:
        raise BadFile(NEEDED) from error
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(pairs)))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT[pre]), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in whole])
    return tokenizer


def load(file: File) -> Text:
    """The tokenizer of a GGUF."""
    name, kind, pre = file.path.name, file.get("tokenizer.ggml.model", str), _optional(file, "tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in SPLIT:
        raise BadFile(
            f"{name} has a tokenizer of kind {kind[:20]!r}, {pre[:20]!r}; read are gpt2 of {', '.join(SPLIT)}"
        )
    tokens, merges = _strings(file, "tokens"), _strings(file, "merges")
    kinds = file.metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise BadFile(f"{name} lists {len(tokens)} tokens, not all different, or not one kind for each")
    if any(not {left, right, left + right} <= vocab.keys() for left, right in pairs):
        raise BadFile(f"{name} has merges of tokens that it does not list")
    whole = [token for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, ADDED)]
    tokenizer = bpe(tokens, pairs, whole, pre)
    # the text's own end and the turn's: a file names only one of them
    ends = {vocab[end] for end in ENDS if end in vocab}
    ends |= {i for key in ("eos", "eot") if type(i := file.metadata.get(f"tokenizer.ggml.{key}_token_id")) is int}
    return Text(tokenizer, frozenset(ends), _optional(file, "tokenizer.chat_template") or CHATML, len(tokens))


def from_folder(folder: Path) -> Text:
    """The tokenizer of a checkpoint's folder: tokenizer.json, and the template beside it."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise BadFile(NEEDED) from error
    if not (file := folder / "tokenizer.json").exists():
        raise BadFile(f"there is no file {file}")
    settings = folder / "tokenizer_config.json"
    try:
        held, told = json.loads(file.read_text()), json.loads(settings.read_text()) if settings.exists() else {}
    except ValueError as error:
        raise BadFile(f"{folder.name} holds a tokenizer that is no JSON: {error}") from error
    tokenizer = Tokenizer.from_str(json.dumps(held))
    template = folder / "chat_template.jinja"
    found = template.read_text() if template.exists() else told.get("chat_template", "")
    ends = {i for end in ENDS if (i := tokenizer.token_to_id(end)) is not None}
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    return Text(tokenizer, frozenset(ends), found if isinstance(found, str) and found else CHATML, size)


def _optional(file: File, key: str) -> str:
    found: str = file.get(key, str, "")
    return found


def _strings(file: File, key: str) -> list[str]:
    found = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(found, list) or not all(type(one) is str for one in found):
        raise BadFile(f"{file.path.name} has no tokenizer.ggml.{key}")
    return found


def pieces(text: Text, tokens: Iterator[list[int]], stop: Sequence[str] = ()) -> Iterator[str]:
    """The text of a stream of tokens as it grows, cut before the first of `stop`.

    Held back: half a character, and what may yet turn out to begin a stop string.
    """
    whole, tail = "", list[int]()
    shown, kept = 0, max((len(one) for one in stop), default=1) - 1
    for new in tokens:
        tail += new
        grown = text.decode(tail)
        if grown.endswith("\ufffd") and len(tail) < LONGEST_CHARACTER + len(new):
            continue
        whole, tail = whole + grown, []
        if found := [at for one in stop if (at := whole.find(one, max(0, shown - kept))) >= 0]:
            yield whole[shown : min(found)]
            return
        if (end := len(whole) - kept) > shown:
            yield whole[shown:end]
            shown = end
    if rest := whole[shown:] + text.decode(tail):
        yield rest
