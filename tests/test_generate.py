"""From files to text: a target's GGUF with its tokenizer, a draft's, the Python API and the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf as peer
import numpy as np
import pytest
import torch
from draftwood.models import api
from draftwood.models.gguf import BadFile
from draftwood.models.sampling import Sampling
from tokenizers.pre_tokenizers import ByteLevel

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden" / "tiny-qwen35-q4_k_m.gguf"


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """The golden model with a vocabulary of bytes, padded to its 512 ids."""
    path = tmp_path_factory.mktemp("target") / "target.gguf"
    reader, writer = peer.GGUFReader(GOLDEN), peer.GGUFWriter(path, "qwen35")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "tokenizer.", "general.architecture")):
            of = field.types[-1] if field.types[0] == peer.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=of)
    tokens = [*sorted(ByteLevel.alphabet()), "ab", *(f"<|pad-{i}|>" for i in range(253)), "<|endoftext|>", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen35")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * 255)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(511)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    finish(writer)
    return path


@pytest.fixture(scope="module")
def draft(tmp_path_factory) -> Path:
    """A random draft of the golden model's width that reads its layers 0 and 2."""
    path = tmp_path_factory.mktemp("draft") / "draft.gguf"
    writer = peer.GGUFWriter(path, "qwen35-dflash-draft")
    writer.add_block_count(1)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_key_length(64)
    writer.add_rope_freq_base(1e7)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_uint32("qwen35-dflash-draft.dflash.block_size", 8)
    writer.add_uint32("qwen35-dflash-draft.dflash.mask_token_id", 300)
    writer.add_array("qwen35-dflash-draft.dflash.target_layer_ids", [0, 2])
    random = np.random.default_rng(0)
    shapes = {"attn_q": (256, 256), "attn_k": (128, 256), "attn_v": (128, 256), "attn_output": (256, 256)}
    shapes |= {"ffn_gate": (256, 256), "ffn_up": (256, 256), "ffn_down": (256, 256)}
    for name, shape in shapes.items():
        writer.add_tensor(f"blk.0.{name}.weight", (0.05 * random.standard_normal(shape)).astype(np.float16))
    for name, size in {"attn_norm": 256, "ffn_norm": 256, "attn_q_norm": 64, "attn_k_norm": 64}.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(size, np.float32))
    writer.add_tensor("dflash.fc.weight", (0.05 * random.standard_normal((256, 512))).astype(np.float16))
    for name in ("dflash.hidden_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(256, np.float32))
    finish(writer)
    return path


def finish(writer: peer.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_all_modes_write_the_same_greedy_text(target, draft):
    texts, stats = {}, {}
    for mode in ("ar", "chain", "tree"):
        model = api.open_text(target, draft, mode=mode, budget=10, context=64, kv="f16")
        texts[mode] = "".join(model.write("ab ab", limit=16))
        stats[mode] = model.generator.stats
    # the first tokens of a random model are no ties
    assert texts["ar"] == texts["chain"] == texts["tree"] and len(texts["ar"]) > 3
    assert stats["ar"].accept_length == 1 and stats["tree"].tokens == 16 and stats["tree"].prompt == 3


def test_the_same_seed_writes_the_same_and_another_writes_something_else(target):
    texts = []
    for seed in (1, 1, 2):
        model = api.open_text(target, context=64, sampling=Sampling(temperature=1.5, top_k=100, top_p=0.95, seed=seed))
        texts.append("".join(model.write("a", limit=12)))
    assert texts[0] == texts[1] != texts[2]


def test_loading_tells_its_progress(target):
    told = []
    api.open_text(target, context=16, progress=lambda done, of: told.append((done, of)))
    assert sum(done for done, _ in told) == told[0][1] and len(told) == 56


def test_a_checkpoints_folder_writes_text_too(tmp_path):
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    held = np.load(ROOT / "tests" / "golden" / "qwen35_hf-3.npz")
    bits = {name[7:]: torch.from_numpy(held[name]).view(torch.bfloat16) for name in held.files if "weight." in name[:7]}
    save_file(bits, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(str(held["config"]))
    words = Tokenizer(models.BPE(vocab={chr(33 + i): i for i in range(64)}, merges=[]))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words.save(str(tmp_path / "tokenizer.json"))
    found = "".join(api.open_text(tmp_path, context=32).write("AB", limit=5))
    assert len(found) == 5 and "".join(api.open_text(tmp_path, context=32).write("AB", limit=5)) == found


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"mode": "tree"}, "mode tree needs a draft"),
        ({"kv": "q5_1"}, "a KV cache is f16, bf16, q8_0, q4_0, tq3_0, or two of them by comma, not 'q5_1'"),
    ],
)
def test_options_that_do_not_fit_are_refused(target, options, sentence):
    with pytest.raises(ValueError) as error:
        api.open_text(target, **options)
    assert str(error.value) == sentence


def test_a_draft_of_another_model_is_refused(target, draft, tmp_path):
    raw = draft.read_bytes()
    at = raw.index(b"target_layer_ids") + len(b"target_layer_ids") + 4 + 4 + 8 + 4
    (tmp_path / "draft.gguf").write_bytes(raw[:at] + (9).to_bytes(4, "little") + raw[at + 4 :])
    with pytest.raises(BadFile, match=r"the draft reads layers \(0, 9\) of 256 numbers, the target has 4 of 256"):
        api.open_text(target, tmp_path / "draft.gguf")


def draftwood(*args: object) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHONPATH": str(ROOT / ".typings"), "COLUMNS": "200"}
    settings.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "draftwood.perf.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=settings, cwd=ROOT.parent)


def test_the_command_writes_text_and_numbers(target, draft):
    run = draftwood(
        "generate", "--target", target, "--draft", draft, "--prompt", "ab", "--max-tokens", 4, "--ctx", 32, "--json"
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["tokens"] == 4 and found["prompt_tokens"] == 1 and found["steps"] >= 1 and found["text"]


def test_the_command_refuses_in_one_sentence(tmp_path, here):
    run = draftwood("generate", "--target", tmp_path / "no.gguf", "--prompt", "x")
    assert run.returncode == 2 and run.stderr.strip().startswith("draftwood: there is no file ")
    assert len(run.stderr.strip().splitlines()) <= 2 and "Traceback" not in run.stderr
    both = here("generate", "--target", tmp_path / "no.gguf")
    assert both.returncode == 2 and "give --prompt or --chat, one of them" in both.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can time steps")
def test_timing_a_model_without_a_gpu_is_refused(here):
    run = here("bench", "model", "--synthetic", "27b")
    assert run.returncode == 2 and "times whole steps on a GPU, and there is none here" in run.stderr
