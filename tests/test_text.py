"""Tokenizer and chat template from a GGUF, and the stream of text: whole characters, cut before a stop string."""

from functools import cache
from pathlib import Path

import gguf as peer
import pytest
from draftwood.models import gguf, text
from draftwood.models.gguf import BadFile
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2")]
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]


def write(path: Path, pre: str = "qwen35", merges=MERGES, **keys) -> Path:
    """A GGUF of nothing but a vocabulary: all bytes, a few merges, control tokens."""
    tokens = sorted(ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    writer = peer.GGUFWriter(path, "qwen35")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *CONTROLS])
    writer.add_token_types([1] * len(tokens) + [3] * len(CONTROLS))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(len(tokens) + CONTROLS.index("<|im_end|>"))
    for key, value in keys.items():
        writer.add_string(f"tokenizer.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@cache
def words(folder: str) -> text.Text:
    return text.load(gguf.load(write(Path(folder) / "x.gguf")))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return words(str(tmp_path_factory.mktemp("words")))


def shown(tiny: text.Text, string: str) -> list[str]:
    return [tiny.tokenizer.id_to_token(i) for i in tiny.encode(string)]


@given(string=st.text())
def test_text_comes_back_in_nfc(tiny, string):
    import unicodedata

    assert tiny.decode(tiny.encode(string)) == unicodedata.normalize("NFC", string)


def test_merges_do_not_cross_the_pre_tokenizers_borders(tiny):
    assert shown(tiny, "the the") == ["the", "Ġthe"]
    # digits stand alone, whatever merges there are
    assert shown(tiny, "12") == ["1", "2"]


def test_a_combining_mark_stays_with_its_letter(tiny):
    """'x' with a macron below has no composed form; under qwen2's rule the mark would begin a new piece."""
    pieces = [piece for piece, _ in tiny.tokenizer.pre_tokenizer.pre_tokenize_str("x\u0331y")]
    assert len(pieces) == 1


def test_control_tokens_are_single_ids_and_plain_text_is_not(tiny):
    assert shown(tiny, "<|im_start|>t<|im_end|>") == ["<|im_start|>", "t", "<|im_end|>"]
    assert len(tiny.encode("<|im_sta")) > 1


def test_a_text_ends_at_both_ends_though_the_file_names_one(tiny):
    assert {tiny.tokenizer.id_to_token(i) for i in tiny.ends} == {"<|endoftext|>", "<|im_end|>"}


def test_a_chat_begins_an_answer_with_thinking_or_without(tiny):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi "}]
    opening = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert tiny.chat(turns) == opening
    assert tiny.chat(turns, thinking=False) == opening + "\n</think>\n\n"


def test_the_files_own_template_is_used(tmp_path):
    template = "{{ messages[0].content }}|{{ enable_thinking }}"
    found = text.load(gguf.load(write(tmp_path / "x.gguf", chat_template=template)))
    assert found.chat([{"role": "user", "content": "hey"}], thinking=False) == "hey|False"


def test_a_template_that_refuses_the_messages_says_so(tmp_path):
    template = "{{ raise_exception('no system message') }}"
    found = text.load(gguf.load(write(tmp_path / "x.gguf", chat_template=template)))
    with pytest.raises(BadFile, match="the chat template does not take these messages: no system message"):
        found.chat([{"role": "user", "content": "hey"}])


def test_a_template_has_no_way_out_of_its_sandbox(tmp_path):
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    found = text.load(gguf.load(write(tmp_path / "x.gguf", chat_template=template)))
    with pytest.raises(BadFile, match="unsafe"):
        found.chat([{"role": "user", "content": "hey"}])


@pytest.mark.parametrize(
    "keys, sentence",
    [
        ({"pre": "llama3"}, "x.gguf has a tokenizer of kind 'gpt2', 'llama3'; read are gpt2 of qwen35, qwen2"),
        ({"merges": [("t", "zz")]}, "x.gguf has merges of tokens that it does not list"),
    ],
)
def test_an_unknown_tokenizer_is_refused_in_one_sentence(tmp_path, keys, sentence):
    path = write(tmp_path / "x.gguf", **keys)
    if "merges" in keys:
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"t zz", b"q zz"))
    with pytest.raises(BadFile) as error:
        text.load(gguf.load(path))
    assert str(error.value) == sentence


def test_the_golden_model_has_no_tokenizer():
    with pytest.raises(BadFile, match="has a tokenizer of kind 'none'"):
        text.load(gguf.load(Path(__file__).parent / "golden" / "tiny-qwen35-q4_k_m.gguf"))


# -- the stream --------------------------------------------------------------------------------------------------------


@given(string=st.text(min_size=1), size=st.integers(1, 3), stop=st.lists(st.text(min_size=1, max_size=4), max_size=2))
def test_a_stream_shows_whole_characters_and_nothing_of_a_stop_string(tiny, string, size, stop):
    import unicodedata

    ids = tiny.encode(string)
    stream = (ids[i : i + size] for i in range(0, len(ids), size))
    parts = list(text.pieces(tiny, stream, stop))
    whole = unicodedata.normalize("NFC", string)
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in whole
    ends = [at for one in stop if (at := whole.find(one)) >= 0]
    found = "".join(parts)
    if not ends:
        assert found == whole
    else:
        # a stop string is found when it is complete, by then a later one may begin further left
        assert whole.startswith(found) and any(whole[len(found) :].startswith(one) for one in stop)


def test_bytes_that_are_no_character_do_not_stop_the_stream(tiny):
    lone = tiny.tokenizer.token_to_id("Ã")
    parts = list(text.pieces(tiny, iter([[lone]] * 6 + [tiny.encode("a")])))
    assert "".join(parts).endswith("a") and len(parts) > 1
