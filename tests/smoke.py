"""What an installed hysac must do: `tests/try_release.py` runs it far from the checkout.

python -I smoke.py native|torch
"""

import math
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import torch

import hypkernels as hk
import hysac
from hypkernels.cpu import library


def check_lane(expected: str) -> None:
    reason = library.why_not()
    assert (reason is None) == (expected == "native"), reason
    print(f"hysac {version('hysac')}, {library.describe()[0]}")


def check_place() -> None:
    site = Path(sysconfig.get_path("purelib"))
    for package in (hk, hysac):
        assert Path(package.__file__).is_relative_to(site), package.__file__
        assert Path(package.__file__).with_name("py.typed").exists()


def check_geometry() -> None:
    """A distance to the origin is the length of the tangent vector, its gradient the direction."""
    tangent = torch.tensor([[0.3, -0.4], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    distances = hk.dist0(hk.exp_map0(tangent, 0.7), 0.7)
    (gradient,) = torch.autograd.grad(distances.sum(), tangent)
    lengths = torch.tensor([0.5, 5.0], dtype=torch.float64)
    torch.testing.assert_close(distances.detach(), lengths, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, tangent.detach() / lengths[:, None], rtol=1e-14, atol=0)


def check_loss() -> None:
    """Of two pairs at right angles, by the law of cosines, and its gradient by a difference."""
    points = hk.exp_map0(torch.eye(2, dtype=torch.float64)).requires_grad_()
    loss = hk.contrastive_loss(points, points.detach())
    apart = math.acosh(math.cosh(1.0) ** 2)
    assert math.isclose(loss.item(), math.log1p(math.exp(-apart)), rel_tol=1e-14), loss
    (gradient,) = torch.autograd.grad(loss, points)
    step = torch.tensor([[0.0, 0.0], [1e-6, 0.0]], dtype=torch.float64)
    there, back = (hk.contrastive_loss(points + sign * step, points.detach()) for sign in (1, -1))
    torch.testing.assert_close(gradient[1, 0], ((there - back) / 2e-6).detach(), rtol=1e-6, atol=0)


def check_command() -> None:
    """Data, two steps of training and a score, with no extra installed."""
    hysac_command("toy --out toy --train-size 16 --val-size 8")
    data = "--train-data toy/train.jsonl --val-data toy/val.jsonl --workers 0 --device cpu"
    hysac_command(f"train {data} --model hysac-toy --batch-size 4 --max-steps 2 --logs runs --name first")
    line = hysac_command("score --model-dir runs/first --device cpu --text castle")
    assert float(line.split("\t")[1]) > 0, line


def hysac_command(arguments: str) -> str:
    command = Path(sysconfig.get_path("scripts"), "hysac")
    done = subprocess.run([command, *arguments.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


if __name__ == "__main__":
    check_lane(sys.argv[1])
    check_place()
    check_geometry()
    check_loss()
    check_command()
