"""Where shared memory lies, which inline PTX wants to know and Gluon does not say.

every KiB of shared memory is told its own address, once, before anything else is in it
memory that begins with a KiB then says where it begins
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .newer import barrier

# all that a program can have
_KIB = gl.constexpr(256)
_TELL = gl.constexpr("""
{
.reg .b32 n, s;
.reg .pred p;
shl.b32 n, $1, 10;
mov.u32 s, global_smem;
add.u32 $0, s, n;
mov.u32 s, %dynamic_smem_size;
setp.lt.u32 p, n, s;
@p st.shared.b32 [$0], $0;
}
""")
_ARRIVE = gl.constexpr("""
{
.reg .pred p;
setp.eq.u32 p, $2, 0;
@p mbarrier.arrive.shared.b64 _, [$1];
mov.b32 $0, 0;
}
""")
_READ = gl.constexpr("fence.proxy.async.shared::cta;\nmov.b32 $0, $1;")
_CAME = gl.constexpr("""
{
.reg .pred p;
bar.warp.sync 0xffffffff;
setp.eq.u32 p, $2, 0;
@p mbarrier.arrive.shared.b64 _, [$1];
mov.b32 $0, 0;
}
""")
# an arrival of every thread's, when all that it copies has come
_COPIED = gl.constexpr("cp.async.mbarrier.arrive.noinc.shared.b64 [$1];\nmov.b32 $0, $2;")
_WAIT = gl.constexpr("""
{
.reg .pred p;
again:
mbarrier.try_wait.parity.shared.b64 p, [$1], $2;
@!p bra.uni again;
mov.b32 $0, 0;
}
""")
_BULK = gl.constexpr("""
{
.reg .pred p;
setp.eq.u32 p, $5, 0;
@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$1], [$2], $3, [$4];
mov.b32 $0, 0;
}
""")


@gluon.constexpr_function
def _threads(W):
    return gl.BlockedLayout([1], [32], [W], [0])


@gluon.jit
def tell(W: gl.constexpr):
    """W: the program's warps."""
    gl.inline_asm_elementwise(_TELL, "=r,r", [gl.arange(0, _KIB, layout=_threads(W))], gl.int32, is_pure=False, pack=1)
    barrier()


@gluon.jit
def address(memory, W: gl.constexpr):
    """Of words [n], of which the first begins a KiB that was told."""
    return gl.sum(memory.slice(0, 1).load(_threads(W)), 0)


@gluon.jit
def kept(memory, W: gl.constexpr):
    """Up to here memory that only PTX uses is given to nobody else: words [n]."""
    words = memory.slice(0, 1).load(_threads(W))
    gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [words], gl.int32, is_pure=False, pack=1)


@gluon.constexpr_function
def _begun(rings):
    """mbarriers from $1 on, by thread $2 alone; rings: how far on one begins, its mbarriers, one or as many as others',
    and their arrivals. In a loop: code that runs once is waited for."""
    turns = max(many for _, many, _ in rings)
    text = "{\n.reg .pred p;\n.reg .b32 a, e;\nsetp.ne.u32 p, $2, 0;\n@p bra done;\nmov.b32 a, $1;\n"
    text += f"add.u32 e, $1, {8 * turns};\n"
    for at, many, count in rings:
        if many == 1:
            text += f"mbarrier.init.shared.b64 [a+{at}], {count};\n"
    text += "again:\n"
    for at, many, count in rings:
        if many > 1:
            text += f"mbarrier.init.shared.b64 [a+{at}], {count};\n"
    return text + "add.u32 a, a, 8;\nsetp.lt.u32 p, a, e;\n@p bra again;\ndone:\nmov.b32 $0, 0;\n}"


@gluon.jit
def begin(at, RINGS: gl.constexpr, W: gl.constexpr):
    """A program's mbarriers by one thread: by one a lane, they come one after the other, too."""
    _each(_begun(RINGS), gl.full((32 * W,), at, gl.int32, layout=_threads(W)), gl.arange(0, 32 * W, layout=_threads(W)))


@gluon.jit
def arrive(at, when, W: gl.constexpr):
    """Every warp at the mbarrier there, when it comes to it: `mbarrier.arrive` has all of them wait for each other."""
    _by_lane_0(_ARRIVE, at, when, W)


@gluon.jit
def read(W: gl.constexpr):
    """What the threads have read of shared memory the TMA may write over once they have arrived."""
    P: gl.constexpr = _threads(W)
    gl.inline_asm_elementwise(_READ, "=r,r", [gl.arange(0, 32 * W, layout=P)], gl.int32, is_pure=False, pack=1)


@gluon.jit
def give_back(at, when, W: gl.constexpr):
    """As `arrive`, of memory that the TMA may write over then: its copies overtake loads that are under way."""
    read(W)
    arrive(at, when, W)


@gluon.jit
def came(at, W: gl.constexpr, when=True):
    """As `arrive`, when all that the warp's lanes have read and written is."""
    _by_lane_0(_CAME, at, when, W)


@gluon.jit
def copied(at, W: gl.constexpr):
    """Every thread at the mbarrier there, once the asynchronous copies that it has begun have come."""
    at = gl.full((32 * W,), at, gl.int32, layout=_threads(W))
    _each(_COPIED, at, at)


@gluon.jit
def wait(at, parity, W: gl.constexpr):
    """Every warp for itself: before `mbarrier.wait` they would wait for each other."""
    P: gl.constexpr = _threads(W)
    _each(_WAIT, gl.full((32 * W,), at, gl.int32, layout=P), gl.full((32 * W,), parity, gl.int32, layout=P))


@gluon.jit
def bulk(p, to, BYTES: gl.constexpr, barrier):
    """One warp has BYTES from p copied to shared memory, sixteen by sixteen; the mbarrier there counts them."""
    P: gl.constexpr = _threads(1)
    o = gl.arange(0, 32, layout=P)
    to, barrier = gl.full((32,), to, gl.int32, layout=P), gl.full((32,), barrier, gl.int32, layout=P)
    size = gl.full((32,), BYTES, gl.int32, layout=P)
    gl.inline_asm_elementwise(_BULK, "=r,r,l,r,r,r", [to, p + o * 0, size, barrier, o], gl.int32, is_pure=False, pack=1)


@gluon.jit
def _by_lane_0(TEXT: gl.constexpr, at, when, W: gl.constexpr):
    lane = gl.arange(0, 32 * W, layout=_threads(W)) % 32
    _each(TEXT, gl.full((32 * W,), at, gl.int32, layout=_threads(W)), gl.where(when, lane, 1))


@gluon.jit
def _each(TEXT: gl.constexpr, at, given):
    gl.inline_asm_elementwise(TEXT, "=r,r,r", [at, given], gl.int32, is_pure=False, pack=1)
