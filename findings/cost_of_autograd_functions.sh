#!/usr/bin/env bash
# What an autograd.Function costs that is written as torch.func asks for it, or that returns more than it differentiates.
#
# PyTorch 2.14.1, CPU:
#   a Function with setup_context (which torch.func needs) looks up the signature of its forward at every call,
#     torch.func or not: several times the call of the same Function whose forward takes ctx, 47 against 7 us
#   an output marked as non-differentiable still gets a gradient: zeros of its whole size, made anew in every
#     backward pass, unless the Function calls ctx.set_materialize_grads(False). What a forward pass returns in
#     order to save it, 64 MiB here, doubles
# Expected before it was run: that both forms cost the same where no transform is at work, and that no gradient is made
#   for an output that is marked to have none.
# Fails if any of it behaves otherwise; times are shown, not judged.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'torch==2.14.1' 'numpy==2.3.5'
cat > "$work/functions.py" <<'PY'
import inspect
import time

import torch

print("torch", torch.__version__)
x = torch.ones(2, requires_grad=True)


class WithContext(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class WithSetup(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def microseconds(function, calls=5000):
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(calls):
            function.apply(x)
        best = min(best, time.perf_counter() - began)
    return 1e6 * best / calls


old, new = microseconds(WithContext), microseconds(WithSetup)
print(f"a call without setup_context {old:.1f} us, with {new:.1f} us")

lookups = []
signature = inspect.signature
inspect.signature = lambda *args, **kwargs: lookups.append(args) or signature(*args, **kwargs)
for function in (WithContext, WithSetup):
    lookups.clear()
    for _ in range(10):
        function.apply(x)
    print(f"signatures looked up in 10 calls of {function.__name__}: {len(lookups)}")
    assert len(lookups) == (10 if function is WithSetup else 0)

SIZE = 64 << 20


def with_extra(materialize):
    class WithExtra(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            extra = torch.empty(SIZE, dtype=torch.uint8)
            ctx.mark_non_differentiable(extra)
            ctx.set_materialize_grads(materialize)
            return 2 * x, extra

        @staticmethod
        def backward(ctx, grad, grad_of_extra):
            seen.append(grad_of_extra)
            return 2 * grad

    return WithExtra


for materialize in (True, False):
    seen = []
    value, extra = with_extra(materialize).apply(x)
    assert not extra.requires_grad
    value.sum().backward()
    got = seen[0]
    print(f"materialize_grads={materialize}: {'nothing' if got is None else f'{got.nbytes >> 20} MiB of zeros'}")
    assert (got is not None and got.nbytes == SIZE and not got.any()) == materialize
PY
"$work/venv/bin/python" -W ignore "$work/functions.py"
# Output seen:
#   torch 2.14.1+cu130
#   a call without setup_context 6.5 us, with 46.8 us
#   signatures looked up in 10 calls of WithContext: 0
#   signatures looked up in 10 calls of WithSetup: 10
#   materialize_grads=True: 64 MiB of zeros
#   materialize_grads=False: nothing
