"""Gluon kernels without a GPU: a program at a time, in numpy. Triton's own interpreter does not know Gluon.

What is asynchronous, copies and products, happens at once, or only when it is waited for (`late`): a kernel that reads
too early, or overwrites what it still needs, gives other numbers in one of the two. Parts of a program that run side by
side take turns, at their barriers: of those that can go on it is the first in `order`. Inline PTX is executed from its
text.
"""

import functools
import operator
import re
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.language import constexpr

from . import ptx
from .tensors import Descriptor, Layout, Pointer, PointerType, Shared, Value, argument, of, poison

_KINDS = {
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "float16": np.float16,
    "float32": np.float32,
}


class Barrier:
    """An mbarrier: so many arrivals, and the bytes that were announced, end a round."""

    def __init__(self, count: int) -> None:
        self.count, self.arrived, self.round, self.bytes = count, 0, 0, 0
        self.coming: list[Callable[[], int]] = []

    def arrive(self, count: int, bytes: int = 0) -> None:
        self.arrived += count
        self.bytes += bytes
        self._settle()

    def land(self) -> None:
        while self.coming:
            self.bytes -= self.coming.pop(0)()
        self._settle()

    def _settle(self) -> None:
        if self.arrived == self.count and not self.bytes:
            self.arrived, self.round = 0, self.round + 1


class Role:
    """Warps that run one function, and what they have under way. In a thread of its own, one of which runs at a time,
    where a program has several."""

    def __init__(self, run: Callable[[], None] = lambda: None) -> None:
        self.copies: list[list[Callable[[], None]]] = [[]]
        self.products: list[Callable[[], None]] = []
        self.ready: Callable[[], bool] = lambda: True
        self.run, self.done, self.given_up = run, False, False
        self.mine, self.others = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    def _run(self) -> None:
        self.mine.acquire()
        try:
            if not self.given_up:
                # what a bug reads of poisoned memory may be anything
                with np.errstate(all="ignore"):
                    self.run()
        except BaseException as error:
            self.error = error
        self.done = True
        self.others.release()

    def go_on(self) -> None:
        """Until it pauses or ends."""
        self.mine.release()
        self.others.acquire()

    def pause(self, ready: Callable[[], bool]) -> None:
        self.ready = ready
        self.others.release()
        self.mine.acquire()
        if self.given_up:
            raise SystemExit


class Machine:
    """What `gl`, `hopper` and `async_copy` are while a program runs."""

    def __init__(self, late: bool, order: tuple[int, ...]) -> None:
        self.late, self.order = late, order
        self.role = Role()
        self.barriers: dict[int, Barrier] = {}
        # a program's shared memory, by address, and how much of it is taken
        self.shared, self.taken = np.empty(1 << 19, np.uint8), 0
        self.at: tuple[int, ...] = (0,)
        self.programs: tuple[int, ...] = (1,)

    def language(self) -> types.SimpleNamespace:
        each = {name: _elementwise(getattr(np, name)) for name in ("exp", "exp2", "ravel")}
        each["where"] = lambda m, *args: Value(
            np.where(of(m), *(np.int32(x) if type(x) is int else of(x) for x in args))
        )
        # of a number and none, the number
        each |= {"minimum": _elementwise(np.fmin), "maximum": _elementwise(np.fmax)}
        layouts = {
            "BlockedLayout": lambda size, *_: Layout(len(size)),
            "SliceLayout": lambda _, parent: Layout(parent.rank - 1) if parent else None,
            "DotOperandLayout": lambda _, parent, _width: parent,
            "DistributedLinearLayout": lambda reg_bases, lane_bases, warp_bases, block_bases, shape: Layout(len(shape)),
            "NVMMADistributedLayout": lambda _, warps, *_shape: Layout(len(warps)),
            "NVMMASharedLayout": _nothing,
            "SwizzledSharedLayout": _nothing,
        }
        return types.SimpleNamespace(
            **_KINDS,
            **each,
            bfloat16="bfloat16",
            program_id=lambda axis: Value(np.int32(self.at[axis])),
            num_programs=lambda axis: Value(np.int32(self.programs[axis])),
            static_range=range,
            arange=lambda start, end, layout=None: Value(np.arange(start, end, dtype=np.int32)),
            full=lambda shape, value, kind, layout=None: Value(np.full(shape, of(value), kind)),
            zeros=lambda shape, kind, layout=None: Value(np.zeros(shape, kind)),
            sum=lambda v, axis: Value(v.a.sum(axis, dtype=v.a.dtype)),
            max=lambda v, axis: Value(np.fmax.reduce(v.a, axis)),
            broadcast=lambda v, w: tuple(map(Value, np.broadcast_arrays(v.a, w.a))),
            num_warps=lambda: 4,
            pointer_type=PointerType,
            warp_specialize=self.side_by_side,
            reshape=lambda v, shape: Value(v.a.reshape(shape)),
            permute=lambda v, order: Value(v.a.transpose(order)),
            split=lambda v: (Value(v.a[..., 0]), Value(v.a[..., 1])),
            join=lambda v, w: Value(np.stack([v.a, w.a], -1)),
            expand_dims=lambda v, axis: Value(np.expand_dims(v.a, axis)),
            convert_layout=lambda v, layout, assert_trivial=False: v,
            inline_asm_elementwise=self.ptx,
            allocate_shared_memory=self.allocate,
            load=lambda p, mask=None, other=None, cache_modifier="", volatile=False: Value(p.read(mask, other)),
            store=lambda p, value, mask=None: p.write(value, mask),
            atomic_add=self.atomic_add,
            **layouts,
        )

    def atomic_add(self, p: Pointer, value: Any, sem: str, mask: Any = None) -> Value:
        before = np.zeros(p.at.shape, p.memory.dtype)
        m, value = (np.broadcast_to(of(a), p.at.shape) for a in (True if mask is None else mask, value))
        # one after the other: they may be to one address
        for i in np.ndindex(*p.at.shape):
            one = Pointer(p.memory, p.at[i])
            before[i] = one.read(m[i])
            one.write(before[i] + value[i], m[i])
        return Value(before)

    def copy(self, to: Shared, p: Pointer, mask: Any = None) -> None:
        if to.a.shape != p.at.shape:
            raise ValueError(f"a copy of {p.at.shape} to {to.a.shape}")
        size = to.a.itemsize

        def arrive() -> None:
            to.a[...] = p.read(mask, 0)

        if not (p.at.reshape(-1)[:1] * size % 4 == 0).all():
            raise ValueError("an asynchronous copy begins at a multiple of four bytes")
        self.role.copies[-1].append(arrive) if self.late else arrive()

    def wait_group(self, left: int) -> None:
        groups = self.role.copies
        for group in groups[: len(groups) - 1 - left]:
            for arrive in group:
                arrive()
        del groups[: len(groups) - 1 - left]

    def product(self, a: Any, b: Shared, acc: Value, use_acc: Any = True, is_async: bool = False) -> Value:
        result, started = Value(np.full(acc.shape, np.nan, np.float32)), acc

        def multiply() -> None:
            y = a.a.astype(np.float32) @ b.a.astype(np.float32)
            result.a = started.a + y if use_acc else y

        self.role.products.append(multiply)
        if not (self.late and is_async):
            self.wait_product(0)
        return result

    def wait_product(self, left: int, deps: tuple[Value, ...] | list[Value] = ()) -> Any:
        products = self.role.products
        while len(products) > left:
            products.pop(0)()
        return deps[0] if len(deps) == 1 else tuple(deps)

    def allocate(self, kind: Any, shape: Any, _layout: Any, value: Value | None = None) -> Shared:
        fresh = poison(kind, shape)
        begin = -(-self.taken // 1024) * 1024
        self.taken = begin + fresh.nbytes
        if self.taken > len(self.shared):
            raise MemoryError(f"{self.taken} bytes of shared memory")
        held = Shared(self.shared[begin : self.taken].view(fresh.dtype).reshape(fresh.shape))
        held.a[...] = fresh
        if value is not None:
            held.store(value)
        return held

    def ptx(self, text: Any, constraints: str, args: Any, dtype: Any, is_pure: bool, pack: int) -> Any:
        text, kinds = str(getattr(text, "value", text)), dtype if isinstance(dtype, tuple) else (dtype,)
        if left := re.search(r"wgmma.wait_group.sync.aligned (\d+)", text):
            self.wait_product(int(left[1]))
            return tuple(args)
        if "relaxed.gpu" in text:
            return self.handed(text, *args)
        if "cp.async.bulk" in text:
            self.bulk(*args)
            return Value(np.int32(0))
        if "mbarrier" in text:
            self.at_address(text, *(v.a for v in args))
            return Value(np.int32(0))
        if "wgmma.mma_async" in text:
            return self.group(text, args, len(kinds), sum(part.isdigit() for part in constraints.split(",")))
        given = [np.asarray(np.int32(v) if isinstance(v, int) else of(v)) for v in args]
        made = tuple(map(Value, ptx.run(text, given, kinds, pack, self.shared)))
        return made if isinstance(dtype, tuple) else made[0]

    def group(self, text: str, args: Sequence[Value], count: int, kept: int) -> tuple[Value, ...]:
        """A group of products: `count` sums of a lane each, `kept` before them, A, what is left."""
        before, a = args[:kept], [np.asarray(v.a, np.int32) for v in args[kept:]]
        result = tuple(Value(np.full(a[0].shape, np.nan, np.float32)) for _ in range(count))
        products = ptx.products(text, {f"${count + kept + i}": v.view(np.uint32) for i, v in enumerate(a)})

        def multiply() -> None:
            sums = [v.a for v in before or result]
            for left, n, at, turned, adds in products:
                made = ptx.product(left, self.shared, n, at, turned)
                sums = [x + y if adds else y for x, y in zip(sums, made, strict=True)]
            for v, x in zip(result, sums, strict=True):
                v.a = x

        self.role.products.append(multiply)
        if not self.late:
            self.wait_product(0)
        return result

    # -- parts of a program, side by side ------------------------------------------------------------------------------

    def init(self, memory: Shared, count: int) -> None:
        self.barriers[memory.a.ctypes.data] = Barrier(count)

    def arrive(self, memory: Shared, count: int) -> None:
        self.barriers[memory.a.ctypes.data].arrive(count)
        self.role.pause(lambda: True)

    def expect(self, memory: Shared, bytes: int) -> None:
        self.barriers[memory.a.ctypes.data].arrive(1, bytes)

    def fetch(self, descriptor: Descriptor, at: list[Any], memory: Shared, to: Shared) -> None:
        if to.a.shape != descriptor.box:
            raise ValueError(f"a box of {descriptor.box} to {to.a.shape}")
        barrier, at = self.barriers[memory.a.ctypes.data], [int(of(o)) for o in at]

        def arrive() -> int:
            to.a[...] = descriptor.read(at)
            return descriptor.bytes

        barrier.coming.append(arrive)
        if not self.late:
            barrier.land()

    def bulk(self, to: Value, p: Pointer, size: Value, at: Value, lane: Value) -> None:
        """A copy of so many bytes by lane 0."""
        (i,) = np.flatnonzero(lane.a == 0)
        begin, bytes, words = int(to.a[i]), int(size.a[i]), int(size.a[i]) // p.memory.itemsize
        if (begin | bytes | int(p.at[i]) * p.memory.itemsize) % 16 or begin + bytes > self.taken:
            raise IndexError(f"{bytes} bytes to {begin}: whole sixteens, in memory that the program has")
        barrier = self.barriers[self.shared.ctypes.data + int(at.a[i])]

        def arrive() -> int:
            source = Pointer(p.memory, p.at[i] + np.arange(words))
            self.shared[begin : begin + bytes] = source.read().view(np.uint8)
            return bytes

        barrier.coming.append(arrive)
        if not self.late:
            barrier.land()

    def wait(self, memory: Shared, parity: Any) -> None:
        self.until(self.barriers[memory.a.ctypes.data], parity)

    def at_address(self, text: str, addresses: np.ndarray, given: np.ndarray) -> None:
        """Threads at mbarriers that begin with so many arrivals, are waited for by their round, or met by lane 0."""
        begin = self.shared.ctypes.data
        if "mbarrier.try_wait" in text:
            self.until(self.barriers[begin + int(addresses[0])], given[0])
        elif all_of_them := re.findall(r"mbarrier.init\S+ \[a\+(\d+)\], (\d+)|again:", text):
            turns, more = 1, re.findall(r"add.u32 e, \$1, (\d+)", text)
            for on, count in all_of_them:
                # what follows the label is done in turn
                turns = turns if on else int(more[0]) // 8
                for i in range(turns if on else 0):
                    self.barriers[begin + int(addresses[0]) + int(on) + 8 * i] = Barrier(int(count))
        elif "cp.async.mbarrier" in text:
            self.copied(self.barriers[begin + int(addresses[0])], len(addresses))
        else:
            for at in addresses[given == 0]:
                self.barriers[begin + int(at)].arrive(1)
            self.role.pause(lambda: True)

    def handed(self, text: str, *args: Any) -> tuple[Value, ...] | Value:
        """Words that are EMPTY where nothing is handed over, four a lane at the places that the text names."""
        places = re.findall(r"^(?:@(\w+) )?st.relaxed\S+ \[(\S+)\+(\d+)\]", text, re.M)
        if "ld.relaxed" not in text:
            p, *words = args
            for i, (given, _, offset) in enumerate(places):
                if not given or _one(words[-1]) != int(given[1:]):
                    for r in range(4):
                        # the first of four is never EMPTY
                        word, kept = words[4 * i + r].a, r or "min.u32" not in text
                        (p + (int(offset) // 4 + r)).write(word if kept else np.where(word == -1, -2, word))
            return Value(np.int32(0))
        some = "selp.b64" in text
        *sums, p, count = args[: -3 if some else None]
        before, p_behind, eights = args[-3:] if some else (count, p, count)
        more, passed = (operator.ge if re.search(rf"setp.ge.s32 {p}\d+,", text) else operator.gt for p in "po")
        for i, (given, base, offset) in enumerate(places):
            k, e = (int((re.findall(rf"{name}(\d+)", given) or [0])[0]) for name in "pe")
            if (k and not more(_one(count), k)) or (e and _one(eights) <= e):
                continue
            first: Pointer = (p_behind if base[0] != "$" and not passed(_one(before), k) else p) + int(offset) // 4

            def come(q: Pointer = first) -> bool:
                return not (q.read() == -1).any()

            if not come():
                # others' turn
                self.role.pause(come)
            for r in range(4):
                q, at = first + r, (4 * i + r) % len(sums)
                held = q.read()
                q.write(-1 if "], empty;" in text else held)
                sums[at] = Value((sums[at].a.view(np.float32) + held.view(np.float32)).view(np.int32))
        return tuple(sums)

    def copied(self, barrier: Barrier, threads: int) -> None:
        """Arrivals of so many threads when what the role copies has come."""
        coming, self.role.copies = [arrive for group in self.role.copies for arrive in group], [[]]

        def arrive() -> int:
            for copy in coming:
                copy()
            barrier.arrived += threads
            return 0

        barrier.coming.append(arrive)
        if not self.late:
            barrier.land()
        self.role.pause(lambda: True)

    def until(self, barrier: Barrier, parity: Any) -> None:
        def ready() -> bool:
            # what is late comes when someone waits for it
            barrier.land()
            return barrier.round % 2 != int(parity)

        self.role.pause(ready)

    def side_by_side(self, parts: list[tuple[Callable[..., None], tuple[Any, ...]]], *_warps: Any) -> None:
        whole = self.role
        roles = [Role(functools.partial(parts[i][0], *parts[i][1])) for i in self.order if i < len(parts)]
        for role in roles:
            role.thread.start()
        try:
            while left := [role for role in roles if not role.done]:
                ready = [role for role in left if role.ready()]
                if not ready:
                    if whole.thread.ident is None:
                        raise RuntimeError(f"each of {len(left)} parts of the program waits for another")
                    whole.pause(functools.partial(lambda left: any(role.ready() for role in left), left))
                    continue
                self.role = ready[0]
                self.role.go_on()
                if self.role.error:
                    raise self.role.error
        finally:
            self.role = whole
            for role in roles:
                if not role.done:
                    role.given_up = True
                    role.go_on()


def _nothing(*_args: Any, **_more: Any) -> None:
    return None


def _one(value: Value) -> int:
    """What all lanes have."""
    return int(np.unique(value.a).item())


def _elementwise(function: Callable[..., Any]) -> Callable[..., Value]:
    return lambda *args: Value(function(*map(of, args)))


# -- a launch ----------------------------------------------------------------------------------------------------------


def launch(
    kernel: GluonJITFunction,
    grid: tuple[int, ...],
    args: tuple[Any, ...],
    late: bool,
    order: tuple[int, ...] = (0, 1, 2),
    together: int = 0,
    **more: Any,
) -> None:
    """The programs of a grid, the last one first: whoever shares sums must not count on an order. Unless programs wait
    for each other: then the first one first, and so many together at most, as where a GPU has no room for more."""
    names = kernel.arg_names
    given = dict(zip(names, args, strict=False)) | {name: v for name, v in more.items() if name in names}
    given = {name: argument(v) for name, v in given.items()}
    if together:
        _side_by_side(kernel, grid, given, late, order, together)
        return
    machine = Machine(late, order)
    run = _plain(kernel.fn, machine)
    machine.programs = grid
    for at in sorted(np.ndindex(*grid), reverse=True):
        machine.at, machine.role, machine.taken = at, Role(), 0
        # what a bug reads of poisoned memory may be anything
        with np.errstate(all="ignore"):
            run(**given)


def _side_by_side(
    kernel: GluonJITFunction,
    grid: tuple[int, ...],
    given: dict[str, Any],
    late: bool,
    order: tuple[int, ...],
    together: int,
) -> None:
    def begun(at: tuple[int, ...]) -> Role:
        machine = Machine(late, order)
        machine.at, machine.programs = at, grid
        machine.role = Role(functools.partial(_plain(kernel.fn, machine), **given))
        machine.role.thread.start()
        return machine.role

    waiting, left = list[Role](), sorted(np.ndindex(*grid), reverse=True)
    try:
        while waiting or left:
            while left and len(waiting) < together:
                waiting.append(begun(left.pop()))
            ready = [role for role in waiting if role.ready()]
            if not ready:
                raise RuntimeError(f"each of {len(waiting)} programs waits for sums that none of them hands over")
            ready[0].go_on()
            if ready[0].error:
                raise ready[0].error
            waiting = [role for role in waiting if not role.done]
    finally:
        for role in waiting:
            if not role.done:
                role.given_up = True
                role.go_on()


def _plain(function: Callable[..., Any], machine: Machine) -> Callable[..., Any]:
    """The Python function behind a kernel, among what stands for Gluon."""
    done: dict[int, dict[str, Any]] = {}

    def world(space: dict[str, Any]) -> dict[str, Any]:
        if id(space) in done:
            return done[id(space)]
        mine: dict[str, Any] = done.setdefault(id(space), {"__builtins__": __builtins__})
        for name, v in space.items():
            if isinstance(v, GluonJITFunction) or type(v).__name__ == "ConstexprFunction":
                defaults = tuple(getattr(d, "value", d) for d in v.fn.__defaults__ or ())
                mine[name] = types.FunctionType(v.fn.__code__, world(v.fn.__globals__), name, defaults)
            elif isinstance(v, constexpr):
                mine[name] = v.value
        hopper = {
            "warpgroup_mma": machine.product,
            "warpgroup_mma_wait": machine.wait_product,
            "fence_async_shared": _nothing,
            "mbarrier": types.SimpleNamespace(
                init=machine.init,
                arrive=machine.arrive,
                expect=machine.expect,
                wait=machine.wait,
                MBarrierLayout=_nothing,
            ),
        }
        mine |= hopper | {
            "mma_v2": lambda a, b, acc: Value(acc.a + a.a.astype(np.float32) @ b.a.astype(np.float32)),
            "gl": machine.language(),
            # its numbers are of 32 bits, as a program's are
            "range": lambda *ends: [Value(np.int32(i)) for i in range(*map(int, ends))],
            "tl": types.SimpleNamespace(
                extra=types.SimpleNamespace(
                    cuda=types.SimpleNamespace(gdc_wait=_nothing, gdc_launch_dependents=_nothing)
                )
            ),
            "hopper": types.SimpleNamespace(**hopper),
            "async_copy": types.SimpleNamespace(
                commit_group=lambda: machine.role.copies.append([]), wait_group=machine.wait_group
            ),
            "copy": machine.copy,
            "fetch": machine.fetch,
            "barrier": _nothing,
            "reinterpret": lambda memory, kind, shape, _layout: Shared(memory.a.reshape(-1).view(kind).reshape(shape)),
        }
        return mine

    return types.FunctionType(function.__code__, world(function.__globals__), function.__name__)
