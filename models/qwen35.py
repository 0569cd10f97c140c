"""Qwen3.5, the text model: sizes, the tensors a file must hold, and the published type mixes of the 27B.

    layer i     gated delta net, or full attention where (i + 1) % 4 == 0; then SwiGLU; RMS norm before each
    delta       [q | k | v] -> conv 4, silu -> gated delta rule -> norm, silu(z) -> out
    attention   per head [q | gate]; q and k normed, the first 64 of 256 dims rotated; o * sigmoid(gate) -> out

Tensors are named as in GGUF and mean what they mean there: norms hold 1 + w (but the delta net's holds w), ssm_a is
-exp(A_log), value heads are tiled (head h reads key head h % Hk).
"""

from collections.abc import Callable
from dataclasses import dataclass

from .gguf import BadFile, File

ARCH = "qwen35"


@dataclass(frozen=True)
class Config:
    """L layers, hidden E, MLP F; attention H heads over Hkv of D; delta net Hv heads of V over Hk of K, conv W."""

    L: int
    E: int
    F: int
    vocab: int
    H: int
    Hkv: int
    Hv: int
    tied: bool
    recurrent: tuple[bool, ...]
    D: int = 256
    Hk: int = 16
    K: int = 128
    V: int = 128
    W: int = 4
    rotary: int = 64
    theta: float = 1e7
    eps: float = 1e-6
    context: int = 262144
    head_map: str = "tiled"

    @property
    def C(self) -> int:
        """Channels of the convolution."""
        return 2 * self.Hk * self.K + self.Hv * self.V


def alternate(L: int, interval: int = 4) -> tuple[bool, ...]:
    """Which layers are recurrent: all but every `interval`th."""
    return tuple((i + 1) % interval != 0 for i in range(L))


def _of(L: int, E: int, F: int, H: int, Hkv: int, Hv: int, tied: bool) -> Config:
    return Config(L, E, F, 248320, H, Hkv, Hv, tied, alternate(L))


FAMILY = {
    "0.8b": _of(24, 1024, 3584, 8, 2, 16, True),
    "2b": _of(24, 2048, 6144, 8, 2, 16, True),
    "4b": _of(32, 2560, 9216, 16, 4, 32, True),
    "9b": _of(32, 4096, 12288, 16, 4, 32, False),
    "27b": _of(64, 5120, 17408, 24, 4, 48, False),
}


def config(file: File) -> Config:
    """The sizes that a GGUF's metadata gives."""
    arch = file.get("general.architecture", str)
    if arch != ARCH:
        raise BadFile(f"{file.path.name} holds the architecture {arch[:40]!r}; a target is {ARCH}")

    def size(name: str, default: int | None = None) -> int:
        return file.size(f"{ARCH}.{name}", default)

    blocks, extra = size("block_count"), file.get(f"{ARCH}.nextn_predict_layers", int, 0)
    # the last blocks of a file may predict further tokens: no part of the trunk
    if not 0 <= extra < blocks <= 1024:
        raise BadFile(f"{file.path.name} counts {blocks} blocks, {extra} of them for multi-token prediction")
    Hv, inner = size("ssm.time_step_rank"), size("ssm.inner_size")
    if "token_embd.weight" not in file.entries:
        raise BadFile(f"{file.path.name} has no tensor token_embd.weight")
    found = Config(
        L=blocks - extra,
        E=size("embedding_length"),
        F=size("feed_forward_length"),
        vocab=file.entries["token_embd.weight"].shape[0],
        H=size("attention.head_count"),
        Hkv=size("attention.head_count_kv"),
        Hv=Hv,
        tied="output.weight" not in file.entries,
        recurrent=_recurrent(file, blocks)[: blocks - extra],
        D=size("attention.key_length"),
        Hk=size("ssm.group_count"),
        K=size("ssm.state_size"),
        V=inner // Hv,
        W=size("ssm.conv_kernel"),
        rotary=size("rope.dimension_count"),
        theta=file.get(f"{ARCH}.rope.freq_base", float),
        eps=file.get(f"{ARCH}.attention.layer_norm_rms_epsilon", float),
        context=size("context_length"),
    )
    if problem := impossible(found, size("attention.value_length"), inner):
        raise BadFile(f"{file.path.name}: {problem}")
    return found


def _recurrent(file: File, blocks: int) -> tuple[bool, ...]:
    listed = file.metadata.get(f"{ARCH}.attention.recurrent_layers")
    if listed is None:
        return alternate(blocks, file.size(f"{ARCH}.full_attention_interval", 4))
    if not isinstance(listed, list) or len(listed) != blocks or not all(type(one) is bool for one in listed):
        raise BadFile(f"{file.path.name}: {ARCH}.attention.recurrent_layers is not one truth value a block")
    return tuple(listed)


def impossible(c: Config, value_length: int, inner: int) -> str | None:
    """What the ops cannot run, in a sentence."""
    if c.H % c.Hkv or c.Hv % c.Hk:
        return f"{c.H} query heads over {c.Hkv}, {c.Hv} value heads over {c.Hk}: neither may leave a rest"
    if value_length != c.D or c.D & (c.D - 1) or not 32 <= c.D <= 512:
        return f"heads of {c.D} and values of {value_length}; they must be one power of two from 32 to 512"
    if inner != c.Hv * c.V or c.K not in (16, 32, 64, 128) or c.V not in (16, 32, 64, 128) or not 2 <= c.W <= 5:
        return f"a delta net of {inner} channels in {c.Hv} heads, states of {c.K} x {c.V}, conv {c.W} is not supported"
    if c.rotary % 2 or c.rotary > c.D or not (0 < c.theta < 1e12 and 0 < c.eps < 1):
        return f"rotary {c.rotary} of {c.D} dims, theta {c.theta}, eps {c.eps} is not supported"
    return None


def tensors(c: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor the trunk needs and its shape."""
    every: dict[str, tuple[int, ...]] = {"attn_norm.weight": (c.E,), "post_attention_norm.weight": (c.E,)}
    every |= {"ffn_gate.weight": (c.F, c.E), "ffn_up.weight": (c.F, c.E), "ffn_down.weight": (c.E, c.F)}
    delta = {
        "attn_qkv.weight": (c.C, c.E),
        "attn_gate.weight": (c.Hv * c.V, c.E),
        "ssm_alpha.weight": (c.Hv, c.E),
        "ssm_beta.weight": (c.Hv, c.E),
        "ssm_conv1d.weight": (c.C, c.W),
        "ssm_dt.bias": (c.Hv,),
        "ssm_a": (c.Hv,),
        "ssm_norm.weight": (c.V,),
        "ssm_out.weight": (c.E, c.Hv * c.V),
    }
    attention = {
        "attn_q.weight": (2 * c.H * c.D, c.E),
        "attn_k.weight": (c.Hkv * c.D, c.E),
        "attn_v.weight": (c.Hkv * c.D, c.E),
        "attn_q_norm.weight": (c.D,),
        "attn_k_norm.weight": (c.D,),
        "attn_output.weight": (c.E, c.H * c.D),
    }
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (c.vocab, c.E), "output_norm.weight": (c.E,)}
    if not c.tied:
        found["output.weight"] = (c.vocab, c.E)
    for i, recurrent in enumerate(c.recurrent):
        found |= {f"blk.{i}.{name}": shape for name, shape in {**every, **(delta if recurrent else attention)}.items()}
    return found


def check(file: File, c: Config) -> None:
    """Raise unless the file holds every tensor in its shape."""
    for name, shape in tensors(c).items():
        if name not in file.entries:
            raise BadFile(f"{file.path.name} has no tensor {name}")
        if file.entries[name].shape != shape:
            found = list(file.entries[name].shape)
            raise BadFile(f"{file.path.name}: tensor {name} is {found}, the metadata makes it {list(shape)}")


# -- type mixes --------------------------------------------------------------------------------------------------------

Mix = Callable[[str, int, int], str]


def more_bits(i: int, n: int) -> bool:
    """The layers to which llama.cpp's K_M mixes give more bits: the first and last eighth, every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _plain(name: str) -> bool:
    return name.endswith(("norm", "ssm_a", "ssm_dt", "ssm_conv1d"))


def q4_k_m(name: str, i: int, n: int) -> str:
    """llama-quantize's Q4_K_M: the format of tensor `name`, without suffix, in layer i of n."""
    if _plain(name):
        return "f32"
    more = name == "output" or (name in ("attn_v", "attn_qkv", "ffn_down") and more_bits(i, n))
    return "q6_k" if more else "q4_k"


def unsloth_35(name: str, i: int, n: int) -> str:
    """unsloth's Qwen3.5-27B-Q4_K_M: 16,729,819,136 bytes of tensors."""
    match name:
        case "ssm_alpha" | "ssm_beta":
            return "q8_0"
        case "attn_qkv" | "ssm_out":
            return "q5_k"
        case "attn_v":
            return "q6_k" if i < n // 2 or i in (43, 55) else "q4_k"
    return q4_k_m(name, i, n)


def unsloth_36(name: str, i: int, n: int) -> str:
    """unsloth's Qwen3.6-27B-Q4_K_M."""
    match name:
        case "ssm_alpha" | "ssm_beta":
            return "f32"
        case "ssm_out":
            return "q5_k"
    return q4_k_m(name, i, n)


MIXES: dict[str, Mix] = {"stock": q4_k_m, "unsloth-3.5": unsloth_35, "unsloth-3.6": unsloth_36}


def format_of(mix: Mix, tensor: str, n: int) -> str:
    """The format that a mix gives to `blk.3.attn_v.weight`, or to a tensor outside the blocks."""
    parts = tensor.removesuffix(".weight").removesuffix(".bias").split(".")
    return mix(parts[-1], int(parts[1]) if parts[0] == "blk" else 0, n)
