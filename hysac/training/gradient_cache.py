"""Gradients of one loss over several micro-batches, exact and at the memory of one (arXiv 2101.06983).

A contrastive loss relates every pair of its batch, so averaging the losses of micro-batches is another loss.
Here all features are computed first without a graph, one loss on them gives their gradients, and a second
forward of each micro-batch takes those back into the towers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

MicroBatch = tuple[Tensor, Tensor]
"""Images ``(B, 2, 3, H, W)`` and texts ``(B, 2, L)`` of one micro-batch."""

_FEATURES = ("image_features", "text_features")


def backward(
    model: nn.Module,
    loss: nn.Module,
    micro_batches: Sequence[MicroBatch],
    *,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    scaler: GradScaler | None = None,
    look: Callable[[dict[str, Tensor]], None] | None = None,
) -> dict[str, Tensor]:
    """Add the gradients of ``loss`` over all micro-batches to the parameters' ``grad``.

    The result is that of one batch holding all of them, also for parameters that reach the loss both through
    the features and directly (curvature and temperature). Random layers draw the same numbers in both
    forwards. Batch normalisation is the exception: it sees micro-batches.

    Args:
        model: called as ``model(images, texts)``; returns a dict of ``image_features``, ``text_features``
            and ``logit_scale``. Under DDP the gradients are exchanged once, with the last micro-batch.
        loss: called with that dict and ``output_dict=True``; returns a dict of weighted terms.
        micro_batches: at least one.
        autocast: makes the context of the forwards; the loss runs outside of it.
        scaler: scales the loss, for float16.
        look: called with the model's whole output, that of all micro-batches, before the loss.

    Returns:
        The terms of the loss, detached.
    """
    if len(micro_batches) == 1:
        output = _forward(model, micro_batches[0], autocast)
        if look is not None:
            look(output)
        return _backward_of_loss(loss, output, scaler)
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    states = []
    cached: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for batch in micro_batches:
            states.append(_random_state(batch[0].device))
            cached.append(_forward(bare, batch, autocast))

    leaves = {name: torch.cat([output[name] for output in cached]).requires_grad_() for name in _FEATURES}
    scale = cached[0]["logit_scale"].requires_grad_()
    if look is not None:
        look(leaves)
    terms = _backward_of_loss(loss, {**leaves, "logit_scale": scale}, scaler)

    sizes = [len(output["image_features"]) for output in cached]
    gradients = zip(*(_gradient(leaves[name]).split(sizes) for name in _FEATURES), strict=True)
    final_state = _random_state(micro_batches[0][0].device)
    for number, (batch, state, head_gradients) in enumerate(
        zip(micro_batches, states, gradients, strict=True), start=1
    ):
        is_last = number == len(micro_batches)
        with _exchange_only(model, is_last):
            _set_random_state(batch[0].device, state)
            output = _forward(model, batch, autocast)
            heads = [output[name] for name in _FEATURES]
            if is_last:  # the scale enters the loss once, not once a micro-batch
                heads, head_gradients = [*heads, output["logit_scale"]], (*head_gradients, _gradient(scale))
            torch.autograd.backward(heads, head_gradients)
    _set_random_state(micro_batches[0][0].device, final_state)
    return terms


def _forward(
    model: nn.Module, batch: MicroBatch, autocast: Callable[[], AbstractContextManager]
) -> dict[str, Tensor]:
    # A context of its own: autocast keeps its casts of the weights until it is left, with the no_grad that
    # they were made under.
    with autocast():
        return model(*batch)


def _backward_of_loss(
    loss: nn.Module, output: dict[str, Tensor], scaler: GradScaler | None
) -> dict[str, Tensor]:
    terms = loss(**output, output_dict=True)
    total = torch.stack(list(terms.values())).sum()
    (total if scaler is None else scaler.scale(total)).backward()
    return {name: term.detach() for name, term in terms.items()}


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def _exchange_only(model: nn.Module, when: bool) -> AbstractContextManager:
    if isinstance(model, DistributedDataParallel) and not when:
        return model.no_sync()
    return nullcontext()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
