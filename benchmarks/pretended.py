"""Pretend a device: tensors on ``card`` have shapes, types and bytes, and no numbers.

What a program does there is counted by phase: operators, bytes, live memory, and each time that the
host reads from the device or copies to it. Tensors on the CPU stay real. What is read of the device
is zeros. A tensor left on the CPU is found: it raises.

The device is registered for the whole process, by an interface of torch that may change: use it in
a process of its own.
"""

import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import optimizer
from torch.utils import _foreach_utils, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import star

PROGRAM = str(Path(star.__file__).parent)
aten = torch.ops.aten

# What autocast computes in half precision, and what in float32: those of ATen/autocast_mode.h that
# the models call. They get a kernel of ours, as autocast has none for a device written in Python.
HALF = ["addmm", "baddbmm", "bmm", "conv2d", "linear", "matmul", "mm"]
HALF += ["scaled_dot_product_attention", "_scaled_dot_product_flash_attention"]
FLOAT = ["exp", "group_norm", "layer_norm", "pow.Tensor_Scalar", "rsqrt", "upsample_nearest2d"]
FLOAT_RESULT = ["softmax.int", "sum", "sum.dim_IntList", "cumsum", "linalg_vector_norm"]
# CUDA's own, of which only the shapes are known elsewhere.
CUDA_ONLY = {
    getattr(aten, f"_scaled_dot_product_{kind}_attention{end}")
    for kind in ("flash", "efficient", "cudnn")
    for end in ("", "_backward")
}
# Nothing is launched: memory is asked for.
NO_KERNEL = {aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.lift_fresh}


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1


# -- the device, and its autocast ------------------------------------------------------------------

_kept: list[torch.library.Library] = []
_casts: dict[Tensor, Tensor] = {}  # of an adapter's weights, until autocast ends
_moving: list[bool] = []  # weights leave without numbers: they would fill the memory


@cache
def register() -> torch.device:
    """Make the device ``card`` known to torch, and return it."""
    backend_registration._setup_privateuseone_for_python_backend("card", backend_module=_Module())
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    own = torch.library.Library("aten", "IMPL")
    for names, rule in ((HALF, _half), (FLOAT, _float), (FLOAT_RESULT, _float_result)):
        for name in names:
            own.impl(name, _autocast(rule, name), "AutocastPrivateUse1")
    _kept.extend([rest, own])
    for known in (_foreach_utils._foreach_supported_types, optimizer._foreach_supported_types):
        known.append(FakeTensor)
    torch.nn.Module._apply = _apply  # type: ignore[method-assign,assignment]
    clear = torch.clear_autocast_cache

    def clear_all() -> None:
        _casts.clear()
        clear()

    torch.clear_autocast_cache = clear_all
    return torch.device("card:0")


def _apply(self: torch.nn.Module, function: Callable[[Tensor], Tensor]) -> torch.nn.Module:
    """Do as torch's own, by which `to` works, but put new tensors in the place of the old ones.

    Torch's swaps them, which tensors without numbers do not allow.
    """
    moved: dict[Tensor, Tensor] = {}
    for module in self.modules():
        tables: tuple[dict[str, Any], ...] = module._parameters, module._buffers
        for table in tables:
            for name, x in table.items():
                if x is None:
                    continue
                if x not in moved:
                    _moving.append(True)
                    with torch.no_grad():
                        y = function(x)
                    _moving.pop()
                    if isinstance(x, torch.nn.Parameter) and y is not x:
                        y = torch.nn.Parameter(y, requires_grad=x.requires_grad)
                    moved[x] = y
                table[name] = moved[x]
    return self


def _autocast(rule: Callable, name: str) -> Callable:
    packet, _, overload = name.partition(".")
    function = getattr(getattr(aten, packet), overload or "default")
    below = torch._C.DispatchKeySet(torch._C._dispatch_key_parse("AutocastPrivateUse1"))

    def kernel(*arguments: Any, **options: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(below):
            return rule(function, arguments, options)

    return kernel


def _half(function: Any, arguments: tuple, options: dict) -> Any:
    dtype = torch.get_autocast_dtype("card")

    def cast(x: Tensor) -> Tensor:
        if not x.is_floating_point() or x.dtype in (dtype, torch.float64):
            return x
        if not (x.is_leaf and x.requires_grad):  # as torch's, which caches nothing frozen
            return x.to(dtype)
        if x not in _casts:
            _casts[x] = x.to(dtype)
        return _casts[x]

    arguments, options = tree_map_only(Tensor, cast, (arguments, options))
    return function(*arguments, **options)


def _float(function: Any, arguments: tuple, options: dict) -> Any:
    def cast(x: Tensor) -> Tensor:
        return x.float() if x.is_floating_point() and x.dtype != torch.float64 else x

    arguments, options = tree_map_only(Tensor, cast, (arguments, options))
    return function(*arguments, **options)


def _float_result(function: Any, arguments: tuple, options: dict) -> Any:
    if arguments[0].is_floating_point() and options.get("dtype") is None:
        options = {**options, "dtype": torch.float32}
    return function(*arguments, **options)


# -- what is counted -------------------------------------------------------------------------------


@dataclass
class Counts:
    """What a phase did.

    reads, copies: by where in the program, how often the host read of the device, and copied to
    it. operators: those that launch a kernel or more. moved: bytes that they read and wrote.
    peak: bytes that lived together, at most.
    """

    reads: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    operators: int = 0
    moved: int = 0
    peak: int = 0


class Card(TorchDispatchMode):
    """Runs what is inside on the pretended device, and counts it by phase."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.phases: dict[str, Counts] = {}
        self.counts = self.phases.setdefault("", Counts())
        self.live = 0

    def __enter__(self) -> "Card":
        # Or `torch.tensor(..., device=...)` would pass by this mode.
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)

    @contextmanager
    def phase(self, name: str) -> Iterator[Counts]:
        """Count what is done inside, apart from what is around it."""
        outer, self.counts = self.counts, self.phases.setdefault(name, Counts())
        self.counts.peak = max(self.counts.peak, self.live)
        try:
            yield self.counts
        finally:
            self.counts = outer

    def tensor(self, shape: Any, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        """Return a tensor without numbers, also on the CPU: the weights of a model to be opened."""
        with self.fake:
            return torch.empty(shape, dtype=dtype, device=device)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None
    ) -> Any:
        options = options or {}
        leaves = tree_leaves((arguments, options))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        devices = [leaf.type for leaf in leaves if isinstance(leaf, torch.device)]
        if "card" not in devices and not any(isinstance(x, FakeTensor) for x in tensors):
            return function(*arguments, **options)
        given = {_key(x) for x in tensors}
        result = self._run(function, arguments, options)
        made = [x for x in tree_leaves(result) if isinstance(x, FakeTensor) and _on(x)]
        new = [x for x in made if _key(x) not in given]
        for x in new:
            self._lives(x)
        written = any(a.alias_info and a.alias_info.is_write for a in function._schema.arguments)
        if (new or written) and function.overloadpacket not in NO_KERNEL:
            self.counts.operators += 1
            self.counts.moved += sum(_size(x) for x in (*tensors, *made) if _on(x))
        return result

    def _run(self, function: Any, arguments: tuple, options: dict) -> Any:
        if function is aten._local_scalar_dense.default:
            self._count(self.counts.reads)
            return torch.zeros((), dtype=arguments[0].dtype).item()
        if function is aten._to_copy.default:
            x, device = arguments[0], options.get("device") or arguments[0].device
            dtype = options.get("dtype") or x.dtype
            if _on(x) and device.type == "cpu":
                self._count(self.counts.reads)
                if not _moving:
                    return torch.zeros(x.shape, dtype=dtype)
            if not _on(x) and device.type == "card":
                self._count(self.counts.copies)
                with self.fake:
                    return torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=device)
        if function is aten.copy_.default and _on(arguments[0]) != _on(arguments[1]):
            self._count(self.counts.copies if _on(arguments[0]) else self.counts.reads)
            return arguments[0]
        if function is aten.nonzero.default:
            self._count(self.counts.reads)
            return arguments[0].new_empty((0, arguments[0].dim()), dtype=torch.int64)
        if function.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            arguments = self._indexed(arguments)
        if function.overloadpacket in CUDA_ONLY:
            return self._by_shapes(function, arguments, options)
        with self.fake:
            return function(*arguments, **options)

    def _indexed(self, arguments: tuple) -> tuple:
        """Count what an index costs: a mask is read, and one on the CPU is copied."""
        indices = []
        for index in arguments[1]:
            if index is not None and index.dtype == torch.bool:
                self._count(self.counts.reads)
                index = self.tensor(0, torch.int64, "card")
            elif index is not None and not _on(index):
                self._count(self.counts.copies)
                index = self.tensor(index.shape, index.dtype, "card")
            indices.append(index)
        return (arguments[0], indices, *arguments[2:])

    def _by_shapes(self, function: Any, arguments: tuple, options: dict) -> Any:
        def bare(x: Tensor) -> Tensor:
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")

        def ours(x: Tensor) -> Tensor:
            with self.fake:
                return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="card")

        found = function(*tree_map_only(Tensor, bare, arguments), **options)
        return tree_map_only(Tensor, ours, found)

    def _count(self, counter: Counter[str]) -> None:
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(PROGRAM)]
        where = f"{frames[-1].filename[len(PROGRAM) + 1 :]}: {frames[-1].name}" if frames else ""
        counter[where] += 1

    def _lives(self, x: Tensor) -> None:
        storage, size = x.untyped_storage(), x.untyped_storage().nbytes()
        self.live += size
        self.counts.peak = max(self.counts.peak, self.live)
        weakref.finalize(storage, self._dies, size)

    def _dies(self, size: int) -> None:
        self.live -= size


def _on(x: Tensor) -> bool:
    return x.device.type == "card"


def _key(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _size(x: Tensor) -> int:
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
