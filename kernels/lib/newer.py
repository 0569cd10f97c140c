"""What Gluon calls otherwise from one version of Triton to the next, under one name."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import tma

barrier = getattr(gl, "barrier", None) or gl.thread_barrier
copy = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
fetch = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_PUBLIC = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))


@gluon.jit
def seen_as(memory, KIND: gl.constexpr, SHAPE: gl.constexpr, L: gl.constexpr):
    """The same bytes of shared memory as another tensor."""
    if _PUBLIC:
        memory = memory.reinterpret(KIND, SHAPE, L)
    else:
        memory = memory._reinterpret(KIND, SHAPE, L)
    return memory
