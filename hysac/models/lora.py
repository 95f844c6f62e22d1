"""Low-rank adapters (LoRA, arXiv 2106.09685) for the transformer towers of open_clip models.

A frozen weight ``W`` becomes ``W + (alpha / r) B A`` by a parametrization. open_clip's attention keeps the
query, key and value weights stacked in one tensor and reads it directly, so each of the three gets its own
factors there. The effective weight is computed in every forward: merge the adapters to serve a model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

import torch
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hysac.models.model import SCALARS

ATTENTION_BLOCKS = ("q", "k", "v")
TARGETS = (*ATTENTION_BLOCKS, "out_proj", "c_fc", "c_proj", "conv1")
DEFAULT_TARGETS = ("k", "v", "out_proj", "c_fc", "c_proj", "conv1")
"""What HySAC was trained with: all but the queries; ``conv1`` is the patch embedding."""

_BLOCKS = (ResidualAttentionBlock, CustomResidualAttentionBlock)


class LowRankUpdate(nn.Module):
    """Adds ``(alpha / r) B A`` to some of the equal row blocks of a weight, viewed as matrices.

    Args:
        weight: the tensor to adapt, ``(rows, ...)``.
        r: rank.
        alpha: numerator of the scaling.
        blocks: names of the row blocks; the rows are divided equally.
        adapted: those that get factors ``A (r, columns)`` and ``B (rows / blocks, r)``, in float32 at least.
    """

    def __init__(
        self, weight: Tensor, r: int, alpha: float, blocks: Sequence[str], adapted: Sequence[str]
    ) -> None:
        super().__init__()
        self.alpha, self.scaling, self.blocks = alpha, alpha / r, tuple(blocks)
        rows, columns = weight.shape[0] // len(blocks), weight[0].numel()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        for name in adapted:
            self.lora_A[name] = nn.Parameter(weight.new_empty(r, columns, dtype=dtype))
            self.lora_B[name] = nn.Parameter(weight.new_zeros(rows, r, dtype=dtype))
            nn.init.kaiming_uniform_(self.lora_A[name], a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            parts = weight.chunk(len(self.blocks))
            return torch.cat([self._update(n, p) for n, p in zip(self.blocks, parts, strict=True)])

    def _update(self, name: str, part: Tensor) -> Tensor:
        if name not in self.lora_A:
            return part
        update = self.scaling * (self.lora_B[name] @ self.lora_A[name])
        return (part + update.view_as(part)).to(part.dtype)


class _Site(NamedTuple):
    """A tensor to adapt, its row blocks and those that get factors."""

    module: nn.Module
    tensor_name: str
    blocks: tuple[str, ...]
    adapted: tuple[str, ...]


def add_lora(
    model: nn.Module, r: int = 16, alpha: float = 1.0, targets: Sequence[str] = DEFAULT_TARGETS
) -> nn.Module:
    """Freeze an open_clip (or HySAC) model and attach low-rank adapters to its transformers, in place.

    The outputs do not change until training: ``A`` is random and ``B`` zero. Everything but the adapters
    and the learnable scalars is frozen, also a tower of another kind (ResNet, timm, Hugging Face), which
    gets no adapters. Adapters of a narrow (bf16, fp16) model are float32.

    Args:
        model: a model with at least one of open_clip's own transformer towers.
        r: rank of each update, at least 1.
        alpha: numerator of the scaling ``alpha / r``. HySAC was trained with ``r=16, alpha=1``.
        targets: any of ``q``, ``k``, ``v``, ``out_proj`` (attention), ``c_fc``, ``c_proj`` (MLP) and
            ``conv1`` (patch embedding).

    Returns:
        ``model``.

    Raises:
        ValueError: a bad ``r`` or ``alpha``, an ``r`` beyond a weight's sides, an unknown target or one that
            ``model`` does not have, or a model that has adapters already.
    """
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ValueError(f"r must be an int of at least 1, got {r!r}")
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be positive and finite, got {alpha}")
    if next(_updates(model), None) is not None:
        raise ValueError("model has LoRA adapters already; merge_lora removes them")
    sites = _sites(model, targets)
    for module, tensor_name, blocks, _ in sites:
        weight = getattr(module, tensor_name)
        largest = max(weight.shape[0] // len(blocks), weight[0].numel())
        if r > largest:
            raise ValueError(f"r must be at most {largest}, the larger side of a weight to adapt, got {r}")

    for name, parameter in model.named_parameters():
        if name not in SCALARS:
            parameter.requires_grad_(False)
    for module, tensor_name, blocks, adapted in sites:
        update = LowRankUpdate(getattr(module, tensor_name), r, alpha, blocks, adapted)
        _attach(module, tensor_name, update)
    return model


def _attach(module: nn.Module, tensor_name: str, update: LowRankUpdate) -> None:
    parametrize.register_parametrization(module, tensor_name, update, unsafe=True)  # which keeps the shape
    # PyTorch made a class for this module alone. It refuses to be pickled, and copies of the module
    # share it: merging one copy would remove the weight from the others.
    kind: Any = type(module)
    if kind.__reduce_ex__ is not _reduced:
        kind.copied_by_pytorch = kind.__deepcopy__
        kind.__reduce_ex__, kind.__deepcopy__ = _reduced, _copied


def _reduced(module: nn.Module, protocol: SupportsIndex) -> Any:
    """``__reduce_ex__``, for ``pickle`` and ``torch.save``."""
    parts = _parts(module)
    # For other parametrizations PyTorch raises its own error.
    return nn.Module.__reduce_ex__(module, protocol) if parts is None else (_adapted_again, parts)


def _copied(module: Any, memo: dict[int, Any]) -> nn.Module:
    """``__deepcopy__``, for ``copy.deepcopy``."""
    parts = _parts(module)
    if parts is None:
        return module.copied_by_pytorch(memo)
    memo[id(module)] = again = _adapted_again(*copy.deepcopy(parts, memo))
    return again


def _parts(module: Any) -> tuple[type[nn.Module], dict[str, Any], dict[str, LowRankUpdate]] | None:
    """The original class, the state without adapters, the adapters; None with other parametrizations."""
    chains = {name: list(chain) for name, chain in module.parametrizations.items()}
    if not all(len(chain) == 1 and isinstance(chain[0], LowRankUpdate) for chain in chains.values()):
        return None
    originals = {name: module.parametrizations[name].original for name in chains}
    state = {
        **module.__dict__,
        "_modules": {name: one for name, one in module._modules.items() if name != "parametrizations"},
        "_parameters": {**module._parameters, **originals},
    }
    return type(module).__bases__[0], state, {name: chain[0] for name, chain in chains.items()}


def _adapted_again(
    kind: type[nn.Module], state: dict[str, Any], updates: dict[str, LowRankUpdate]
) -> nn.Module:
    module: Any = kind.__new__(kind)
    module.__dict__.update(state)
    for tensor_name, update in updates.items():
        _attach(module, tensor_name, update)
    module.parametrizations.train(module.training)
    return module


def merge_lora(model: nn.Module) -> nn.Module:
    """Fold the adapters into the weights, in place: the same outputs, open_clip's own state dict.

    The weights stay frozen, as they were under the adapters.

    Raises:
        ValueError: ``model`` has no adapters.
    """
    for _, module, tensor_name, _ in _attached(model):
        parametrize.remove_parametrizations(module, tensor_name, leave_parametrized=True)
    return model


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The adapters' factors, for an optimizer's parameter group.

    Raises:
        ValueError: ``model`` has no adapters.
    """
    return [p for *_, update in _attached(model) for p in update.parameters()]


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone: ``<module>.lora_A (r, columns)`` and ``.lora_B (rows, r)``, and ``lora_alpha``.

    The tensors share memory with the model, as those of ``state_dict()`` do.

    Raises:
        ValueError: ``model`` has no adapters.
    """
    state: dict[str, Tensor] = {}
    for path, _, _, update in _attached(model):
        state["lora_alpha"] = torch.tensor(update.alpha, dtype=torch.float64)
        for block in update.lora_A:
            state[f"{path}.{block}.lora_A"] = update.lora_A[block].detach()
            state[f"{path}.{block}.lora_B"] = update.lora_B[block].detach()
    return state


@torch.no_grad()
def load_lora(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Fill the adapters of ``model`` from :func:`lora_state_dict`, strictly.

    Raises:
        ValueError: ``model`` has no adapters, or others than the file: different targets, rank or alpha.
            Nothing is loaded then.
    """
    own = lora_state_dict(model)
    missing, unexpected = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"state_dict does not have the adapters of the model: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}; were the targets the same?"
        )
    for name, tensor in own.items():
        if state_dict[name].shape != tensor.shape:
            raise ValueError(
                f"state_dict[{name!r}] must have shape {tuple(tensor.shape)}, "
                f"got {tuple(state_dict[name].shape)}; was r the same?"
            )
    if state_dict["lora_alpha"] != own["lora_alpha"]:
        raise ValueError(
            f"state_dict was trained with alpha={state_dict['lora_alpha'].item()}, "
            f"the adapters of the model have alpha={own['lora_alpha'].item()}"
        )
    for name, tensor in own.items():
        tensor.copy_(state_dict[name])


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that ``model`` would have without parametrizations, with the weights it computes with.

    ``model`` does not change. Without adapters this is its ordinary state dict.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if "parametrizations." not in name}
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for tensor_name in module.parametrizations:
                state[f"{path}.{tensor_name}"] = getattr(module, tensor_name).detach()
    return state


def _sites(model: nn.Module, targets: Sequence[str]) -> list[_Site]:
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    if not targets or set(targets) - set(TARGETS):
        raise ValueError(f"targets must be some of {', '.join(TARGETS)}, got {targets!r}")
    sites: list[_Site] = []
    present: set[str] = set()
    for module in model.modules():
        if isinstance(module, _BLOCKS):
            adapted = tuple(block for block in ATTENTION_BLOCKS if block in targets)
            present.update(adapted)
            if adapted:
                sites.append(_Site(module.attn, "in_proj_weight", ATTENTION_BLOCKS, adapted))
        for target, layer in _layers(module).items():
            if target in targets:
                present.add(target)
                sites.append(_Site(layer, "weight", ("weight",), ("weight",)))
    absent = [target for target in targets if target not in present]
    if absent:
        raise ValueError(f"targets {absent} match nothing in the towers of {type(model).__name__}")
    return sites


def _layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers below ``module`` that have a weight of their own, by target."""
    if isinstance(module, VisionTransformer):
        return {"conv1": module.conv1}
    if isinstance(module, _BLOCKS):
        return {"out_proj": module.attn.out_proj, "c_fc": module.mlp.c_fc, "c_proj": module.mlp.c_proj}
    return {}


def _updates(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, LowRankUpdate]]:
    """Path, module, tensor name and update of every adapted tensor."""
    for path, module in list(model.named_modules()):
        if parametrize.is_parametrized(module):
            for tensor_name, chain in module.parametrizations.items():
                for update in chain:
                    if isinstance(update, LowRankUpdate):
                        yield path, module, tensor_name, update


def _attached(model: nn.Module) -> list[tuple[str, nn.Module, str, LowRankUpdate]]:
    updates = list(_updates(model))
    if not updates:
        raise ValueError("model has no LoRA adapters; add_lora attaches them")
    return updates
