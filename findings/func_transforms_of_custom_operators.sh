#!/usr/bin/env bash
# Derivatives of torch.func through a custom operator, and through an autograd.Function with a jvp.
#
# PyTorch 2.14.1, CPU. For x**2 at (3, 4), whose derivative along (1, 1) is (6, 8):
#   torch.func.jvp of a torch.library.custom_op with register_autograd gives 0, without a word; grad raises
#   torch.func.grad and jvp of an autograd.Function around an operator without an autograd formula, called
#     within a function that torch.compile traces, give 0, without a word; outside of it both are right
#   jacfwd(jacfwd(.)) of an autograd.Function whose jvp is right is wrong: PyTorch runs a jvp with forward mode
#     switched off, so the outer tangent never enters it. jacrev(jacfwd(.)), jacfwd(jacrev(.)) are right.
# Expected before it was run: right values or an error in every case.
# Fails if any of it behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'torch==2.14.1' 'numpy==2.3.5'
cat > "$work/transforms.py" <<'PY'
import torch
from torch.func import grad, jacfwd, jacrev, jvp

print("torch", torch.__version__)
x, ones = torch.tensor([3.0, 4.0]), torch.ones(2)


@torch.library.custom_op("finding::square", mutates_args=(), schema="(Tensor x) -> Tensor")
def square(x):
    return x * x


square.register_fake(torch.empty_like)
square.register_autograd(
    lambda ctx, g: 2 * g * ctx.saved_tensors[0],
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
tangent = jvp(square, (x,), (ones,))[1]
print("jvp of a custom operator:", tangent.tolist())
assert tangent.tolist() == [0.0, 0.0]
try:
    grad(lambda x: square(x).sum())(x)
    raise SystemExit("grad of a custom operator did not raise")
except RuntimeError as error:
    print("grad of a custom operator:", str(error)[:72], "...")

library = torch.library.Library("finding", "FRAGMENT")
library.define("plain_square(Tensor x) -> Tensor")
library.impl("plain_square", lambda x: x * x, "CompositeExplicitAutograd")
torch.library.register_fake("finding::plain_square", torch.empty_like, lib=library)


class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.ops.finding.plain_square(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class SquareWithJvp(Square):
    @staticmethod
    def jvp(ctx, tangent):
        return 2 * ctx.saved_tensors[0] * tangent


def by_grad(x):
    return grad(lambda x: Square.apply(x).sum())(x)


def by_jvp(x):
    return jvp(SquareWithJvp.apply, (x,), (ones,))[1]


for name, function in (("grad", by_grad), ("jvp", by_jvp)):
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    print(f"{name} of a Function: {function(x).tolist()}, compiled: {compiled(x).tolist()}")
    assert function(x).tolist() == [6.0, 8.0]
    assert compiled(x).tolist() == [0.0, 0.0]


def cubes(x):
    return (SquareWithJvp.apply(x) * x).sum()


true = torch.diag(6 * x)
for outer in (jacfwd, jacrev):
    for inner in (jacfwd, jacrev):
        hessian = outer(inner(cubes))(x)
        right = torch.allclose(hessian, true)
        print(f"{outer.__name__}({inner.__name__}): {hessian.tolist()}, {'right' if right else 'wrong'}")
        assert right == (not (outer is jacfwd and inner is jacfwd))
PY
"$work/venv/bin/python" -W ignore "$work/transforms.py"
# Output seen:
#   torch 2.14.1+cu130
#   jvp of a custom operator: [0.0, 0.0]
#   grad of a custom operator: In order to use an autograd.Function with functorch transforms (vmap, gr ...
#   grad of a Function: [6.0, 8.0], compiled: [0.0, 0.0]
#   jvp of a Function: [6.0, 8.0], compiled: [0.0, 0.0]
#   jacfwd(jacfwd): [[12.0, 0.0], [0.0, 16.0]], wrong
#   jacfwd(jacrev): [[18.0, 0.0], [0.0, 24.0]], right
#   jacrev(jacfwd): [[18.0, 0.0], [0.0, 24.0]], right
#   jacrev(jacrev): [[18.0, 0.0], [0.0, 24.0]], right
