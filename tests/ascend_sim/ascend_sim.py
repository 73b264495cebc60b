"""Runs the real torch_npu wheel on a machine without Ascend hardware.

Importing this module preloads the CANN stand-in of build_stub.py, imports torch and torch_npu, and
replaces the NPU kernels of torch_npu by ones that run the CPU kernel of the same operator on a
zero-copy CPU view of the "device" memory.  What stays real: torch_npu's Python code, its autograd
formulas, autocast rules, caching allocator, streams, events, generators and ProcessGroupHCCL.
Reference kernels of the npu:: operators are in npu_ops.py. To run a script that knows nothing of
this module, import it from a sitecustomize.py on the path.
"""

import contextlib
import ctypes
import functools
import os
import re
import sys
import traceback

from tests.ascend_sim import build_stub

if "torch_npu" not in sys.modules:
    # Operators run at once on the calling thread; torch_npu's launch queue would run them later.
    os.environ["TASK_QUEUE_ENABLE"] = "0"
    # What real hardware would hand to the CPU, slowly, becomes an error.
    os.environ.setdefault("TORCH_NPU_FALLBACK_CPU_DISABLE", "1")
    for path in build_stub.libraries():
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)  # the loader then finds them by name
elif os.environ.get("TASK_QUEUE_ENABLE") != "0":
    raise ImportError(
        "import ascend_sim before torch_npu (which torch imports), or set TASK_QUEUE_ENABLE=0"
    )

import torch
import torch_npu  # noqa: F401

from tests.ascend_sim import npu_attention, npu_ops  # noqa: F401

# Operators whose torch_npu kernels only handle memory and metadata: these stay.
NATIVE = re.compile(
    r"aten::(empty|new_empty_strided|set_|resize_|as_strided|view|_reshape_alias|contiguous|squeeze|unsqueeze|unfold"
    r"|is_pinned|_pin_memory|record_stream)|npu::(get_npu_format|get_storage_size|npu_change_data_ptr|empty_)"
    r"|(c10d|fsdp|symm_mem|npu_custom_dist)::"
)
# Operators that take tensors of several devices, and ones that merely move values about.
MIXED = {
    *("copy_", "_to_copy", "_copy_from", "index", "index_put", "index_put_", "_index_put_impl_"),
    *("npu_fusion_attention_v3", "npu_fusion_attention_grad_v3"),
}
MOVES = {"copy_", "_to_copy", "clone", "fill_", "zero_", "cat"}
# Documented without bfloat16 on Atlas A2 (pytorch_2-13-0/torch.md, torch-nn-functional.md).
NO_BFLOAT16 = {
    *("logsumexp", "cumsum", "sort", "argsort", "multinomial", "nonzero", "masked_select"),
    *("gather", "isin", "nll_loss_forward", "nll_loss_backward"),
}
_libraries = []
_without_gradient = set()
_dry = False


class TypeOnNpuError(RuntimeError):
    """Values of a type reached an operator that has no (documented) kernel for it on Atlas A2."""


def is_npu(x):
    return isinstance(x, torch.Tensor) and x.device.type == "npu"


def cpu_view(t):
    """A CPU tensor over the very memory of an NPU tensor; valid while `t` lives."""
    storage = t.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty(t.size(), dtype=t.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    view = torch.empty(0, dtype=t.dtype).set_(flat, t.storage_offset(), t.size(), t.stride())
    torch._C._set_conj(view, t.is_conj())
    torch._C._set_neg(view, t.is_neg())
    return view


def to_npu(x, device):
    """Moves a result into newly allocated device memory."""
    if not isinstance(x, torch.Tensor):
        return x
    out = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=device)
    if not _dry:
        cpu_view(out).copy_(x)
    return out


@contextlib.contextmanager
def seeded_by(generator):
    """Random CPU kernels draw numbers fixed by the NPU generator's place, which advances."""
    seed, offset = npu_ops.draw(generator)
    saved = torch.random.get_rng_state()
    torch.random.default_generator.manual_seed(npu_ops.mixed(seed, offset))
    try:
        yield
    finally:
        torch.random.set_rng_state(saved)


@contextlib.contextmanager
def dry_run():
    """Within, operators allocate their results but compute nothing.

    The real allocator then tells the memory of models too big to run, as device memory never
    written to costs no host memory. `item()` gives 1; operators whose result size depends on values
    fail.
    """
    global _dry
    _dry = True
    try:
        yield
    finally:
        _dry = False


class Call:
    """The arguments of one operator call, lowered from the NPU, and its results, lifted back."""

    def __init__(self, device):
        self.device, self.generator = device, None
        self.views = {}  # id of view -> (view, original)
        self.devices, self.types = set(), set()  # of the tensors with dimensions
        self.requires_grad = False

    def lower(self, x):
        if isinstance(x, (list, tuple)):
            return type(x)(map(self.lower, x)) if not isinstance(x, torch.Size) else x
        if isinstance(x, torch.Tensor) and x.dim():
            self.devices.add(x.device)
            self.types.add(x.dtype)
        if isinstance(x, torch.Tensor) and (_dry or is_npu(x)):
            if is_npu(x) and self.device is None:
                self.device = x.device
            if _dry:
                view = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="meta")
            elif x.shape == (0,):
                view = torch.empty(0, dtype=x.dtype)  # perhaps an `out` to be resized
            else:
                view = cpu_view(x)
            self.views[id(view)] = (view, x)
            self.requires_grad |= x.requires_grad
            return view
        if isinstance(x, torch.device):
            self.device = x
            return torch.device("meta" if _dry else "cpu")
        if isinstance(x, torch.Generator):
            self.generator = x
            return None
        return x

    def lift(self, x):
        if isinstance(x, (list, tuple)):
            return (
                type(x)(map(self.lift, x)) if type(x) in (list, tuple) else tuple(map(self.lift, x))
            )
        if id(x) in self.views:
            return self.views[id(x)][1]
        is_ours = self.device is not None and self.device.type == "npu"
        return to_npu(x, self.device) if is_ours else x

    def resize_outputs(self):
        for view, original in self.views.values():
            if view.size() != original.size():
                original.resize_(view.size())
                if not _dry:
                    cpu_view(original).copy_(view)


def is_printing():
    """Whether torch is formatting a tensor, which it does in float64."""
    return any("_tensor_str" in frame.filename for frame in traceback.extract_stack())


def run_on_cpu(op, *args, **kwargs):
    """The NPU kernel of every operator: runs it on CPU views (in a dry run: on meta tensors)."""
    if _dry and op is torch.ops.aten._local_scalar_dense.default:
        return torch.ones((), dtype=args[0].dtype).item()
    call = Call(kwargs.get("device"))
    args, kwargs = call.lower(args), {name: call.lower(x) for name, x in kwargs.items()}
    name = op.overloadpacket.__name__
    if len(call.devices) > 1 and name not in MIXED:
        found = sorted(map(str, call.devices))
        raise RuntimeError(f"{op}: expected all tensors to be on the same device, found {found}")
    if call.requires_grad and op in _without_gradient and torch.is_grad_enabled():
        raise RuntimeError(f"{op} has no autograd formula in torch_npu, which would only warn")
    if torch.float64 in call.types and name not in MOVES and not is_printing():
        raise TypeOnNpuError(f"float64 in {op}")
    if torch.bfloat16 in call.types and name in NO_BFLOAT16:
        raise TypeOnNpuError(f"bfloat16 in {op}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._C._AutoDispatchBelowAutograd())
        if torch.Tag.nondeterministic_seeded in op.tags:
            generator = call.generator or npu_ops.default_generator(call.device)
            stack.enter_context(seeded_by(generator))
        result = op(*args, **kwargs)
        call.resize_outputs()
        return call.lift(result)


def replace(op, key):
    library = torch.library.Library(op.namespace, "IMPL")
    library.impl(op.name().partition("::")[2], functools.partial(run_on_cpu, op), key)
    _libraries.append(library)


def install():
    """Replaces every NPU kernel whose operator has a CPU kernel.

    The others stay: they are made of other operators, or fail for want of a real CANN library. So
    do torch_npu's fallbacks to the CPU.
    """
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in sorted(torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1")):
        namespace, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        if NATIVE.match(name) or not hasattr(getattr(torch.ops, namespace), packet):
            continue
        sources = ("CPU", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
        if any(has_kernel(name, key) for key in sources):
            op = getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")
            replace(op, "PrivateUse1")
            if namespace == "npu" and not has_kernel(name, "AutogradPrivateUse1"):
                _without_gradient.add(op)
    # There torch_npu goes straight to the device.
    replace(torch.ops.aten.one_hot.default, "AutogradPrivateUse1")


install()
