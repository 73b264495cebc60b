"""CPU reference kernels for the npu:: operators that the backend calls, after Huawei's documents.

They are registered for the CPU key; the simulator's common NPU kernel reaches them through CPU
views. Backward operators differentiate the forward reference, so torch_npu's own autograd formulas
decide what is called with which arguments. Arithmetic is in float32. Arguments outside the
documented limits of Atlas A2 raise ValueError. Attention is in `npu_attention.py`.
"""

import torch
from torch.nn import functional as F

_NPU, _ATEN = torch.library.Library("npu", "IMPL"), torch.library.Library("aten", "IMPL")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def kernel(*names, library=_NPU):
    """Registers a function as the CPU kernel of operators."""

    def register(function):
        for name in names:
            library.impl(name, function, "CPU")
        return function

    return register


def require(condition, text):
    """Refuses what the documentation does not allow."""
    if not condition:
        raise ValueError(f"not accepted by the Ascend operator: {text}")


def vjp(function, grad, *inputs):
    """Gradients of `inputs` through `function`, from inside a kernel, where autograd is off."""
    keys = torch._C.DispatchKey
    include = torch._C._dispatch_tls_local_include_set()
    exclude = torch._C._dispatch_tls_local_exclude_set()
    exclude = exclude.remove(keys.AutogradCPU).remove(keys.ADInplaceOrView)
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad)


def default_generator(device=None):
    """The generator of a device, of the current one without an index."""
    index = device.index if device is not None else None
    return torch.npu.default_generators[torch.npu.current_device() if index is None else index]


def draw(generator):
    """The place in the random stream, which advances."""
    seed, offset = generator.initial_seed(), generator.get_offset()
    generator.set_offset(offset + 4)
    return seed, offset


def mixed(seed, offset):
    """One seed for a place in the random stream."""
    return (seed * 0x9E3779B97F4A7C15 + offset) % 2**63


def _mean_square(x, gamma):
    return x.float().square().mean(tuple(range(x.dim() - gamma.dim(), x.dim())), keepdim=True)


@kernel("npu_rms_norm")
def rms_norm(x, gamma, epsilon=1e-6):
    last = x.shape[x.dim() - gamma.dim() :]
    require(x.dim() >= gamma.dim() and last == gamma.shape, "gamma has the last dimensions of x")
    require(gamma.dtype in (x.dtype, torch.float32), "gamma is float32 or of the type of x")
    rstd = torch.rsqrt(_mean_square(x, gamma) + epsilon)
    return (x.float() * rstd * gamma.float()).to(x.dtype), rstd


@kernel("npu_rms_norm_backward")
def rms_norm_backward(dy, x, gamma, rstd):
    epsilon = rstd**-2 - _mean_square(x, gamma)
    return vjp(lambda x, gamma: rms_norm(x, gamma, epsilon)[0], dy, x, gamma.float())


@kernel("npu_rotary_mul")
def rotary_mul(x, r1, r2, rotary_mode="half", matrix=None):
    require(x.dim() == r1.dim() == r2.dim() and x.dim() in (3, 4), "all three have 3 or 4 axes")
    require(x.size(-1) % 2 == 0 and x.size(-1) < 896, "an even head dimension below 896")
    require(max(x.size(0), x.size(-2)) < 1000, "batch and heads below 1000 (BSND)")
    require(r1.shape == r2.shape and r1.size(-1) == x.size(-1), "r1 and r2 have heads like x")
    require(all(a in (1, b) for a, b in zip(r1.shape, x.shape, strict=True)), "r1 broadcasts to x")
    require(rotary_mode == "half" and matrix is None, "(the simulator has the half mode only)")
    first, second = x.float().chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return (x.float() * r1.float() + turned * r2.float()).to(x.dtype)


@kernel("npu_rotary_mul_backward")
def rotary_mul_backward(grad, x, r1, r2, rotary_mode="half"):
    grads = vjp(lambda *a: rotary_mul(*a, rotary_mode), grad, x, r1, r2)
    return tuple(g.to(x.dtype) for g in grads)


@kernel("npu_swiglu")
def swiglu(x, dim=-1):
    require(x.size(dim) % 2 == 0 and x.dtype in FLOATS, "a dimension of even size, a float type")
    require(x.is_contiguous() and x.numel(), "contiguous and not empty")
    gate, value = x.float().chunk(2, dim)
    return (F.silu(gate) * value).to(x.dtype)


@kernel("npu_swiglu_backward")
def swiglu_backward(grad, x, dim=-1):
    return vjp(lambda x: swiglu(x, dim), grad, x)[0]


@kernel("matmul_backward", library=_ATEN)
def matmul_backward(grad, a, b, mask):
    da, db = vjp(torch.matmul, grad, a, b)
    return da if mask[0] else None, db if mask[1] else None


@kernel("repeat_interleave_backward_int", "repeat_interleave_backward_tensor")
def repeat_interleave_backward(grad, x, repeats, dim=None):
    return vjp(lambda x: x.repeat_interleave(repeats, dim), grad, x)[0]


@kernel("_npu_format_cast")
def format_cast(x, acl_format):
    return x.clone()  # the simulator knows only ND


@kernel("_npu_dtype_cast", "_npu_dtype_cast_backward")
def dtype_cast(x, dtype, *rest):
    return x.to(dtype)
