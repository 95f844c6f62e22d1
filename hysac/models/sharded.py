"""A HySAC model whose parameters are spread over processes by FSDP2, PyTorch's ``fully_shard``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from open_clip.modified_resnet import Bottleneck
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from torch import nn

from hysac.models.model import SCALARS, HySAC

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

METHODS = ("encode_image", "encode_text", "get_logits", "forward_intermediates")
"""What works of a sharded model besides calling it."""

_BLOCKS = (ResidualAttentionBlock, CustomResidualAttentionBlock, Bottleneck)


def fully_shard_model(
    model: HySAC,
    *,
    mesh: DeviceMesh | None = None,
    is_block: Callable[[nn.Module], bool] | None = None,
    **options: Any,
) -> HySAC:
    """Shard a model over the processes of a mesh with FSDP2, in place, and return it.

    Each block of the towers is gathered while it computes; all that is in no block is gathered once. The
    four scalars are 0-d, which ``fully_shard`` refuses: they become DTensors that every process has whole,
    and the backward pass averages their gradients over the mesh, as FSDP does with all others. So
    optimizers, ``clip_grad_norm_``, state dicts and ``torch.distributed.checkpoint`` meet DTensors alone,
    under the names and shapes of the plain model: docs/parallel.md shows a sharded checkpoint and how
    another number of processes goes on from it.

    ``encode_image``, ``encode_text``, ``get_logits`` and ``forward_intermediates`` work as ``forward``
    does; all processes call them together. An optimizer is made after this.

    Args:
        model: on its device, with the same values on all processes; adapters, if any, already attached.
        mesh: of one dimension, over which parameters are sharded, or of two: copies, then shards. ``None`` is
            all processes of the default group.
        is_block: which modules are gathered by themselves; by default open_clip's transformer and ResNet
            blocks. Those of timm's and Hugging Face's towers have to be named here, or are gathered with
            all the rest.
        options: ``reshard_after_forward``, ``mp_policy``, ``offload_policy`` and others of ``fully_shard``,
            for the blocks and the model alike. The scalars stay float32 whatever ``mp_policy`` says.

    Raises:
        TypeError: ``model`` is no HySAC model.
        ValueError: ``model`` is sharded already, or ``options`` has ``ignored_params``.
        RuntimeError: there is no process group.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if not isinstance(model, HySAC):
        raise TypeError(f"model must be a HySAC model, got {type(model).__name__}")
    if isinstance(model, FSDPModule):
        raise ValueError("model is sharded already")
    if "ignored_params" in options:
        raise ValueError("ignored_params are the four scalars; no others can be left out")
    if not dist.is_initialized():
        raise RuntimeError("fully_shard_model needs torch.distributed.init_process_group() before it")
    if mesh is None:
        mesh = init_device_mesh(model.curv.device.type, (dist.get_world_size(),))
    _replicate_scalars(model, mesh)
    chosen = is_block or (lambda module: isinstance(module, _BLOCKS))
    for block in [module for module in model.modules() if module is not model and chosen(module)]:
        fully_shard(block, mesh=mesh, **options)
    scalars = {getattr(model, name) for name in SCALARS}
    fully_shard(model, mesh=mesh, ignored_params=scalars, **options)
    for name in METHODS:
        register_fsdp_forward_method(model, name)
    return model


def _replicate_scalars(model: HySAC, mesh: DeviceMesh) -> None:
    from torch.distributed.tensor import DTensor, Replicate

    for name in SCALARS:
        scalar = getattr(model, name)
        replicated = DTensor.from_local(scalar.detach(), mesh, [Replicate()] * mesh.ndim)
        setattr(model, name, nn.Parameter(replicated, scalar.requires_grad))
