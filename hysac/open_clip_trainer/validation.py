"""The metrics that open_clip's program measures between epochs, by distance."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

from hysac.embeddings import Embeddings
from hysac.evaluation.classifier import build_zero_shot_classifier
from hysac.evaluation.retrieval import expected_recall, rank_counts, retrieval_table
from hysac.models.clip_loss import ClipLikeLoss
from hysac.models.model import HySAC


def retrieval_metrics(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Ranks and recalls under open_clip's names, nearest by distance.

    Args:
        images: points on the unit hyperboloid ``(N, D)``; image ``i`` belongs to text ``i``.
        texts: ``(N, D)``. The distances of all pairs are never in memory.

    Returns:
        ``{image_to_text,text_to_image}_{mean_rank,median_rank,R@1,R@5,R@10}``, ranks from 1. Half of the
        items that are as near as the true one count as nearer. Recalls are means over all orders of
        ties.
    """
    metrics = {}
    pairs = torch.arange(len(texts), device=texts.device)
    for name, queries, gallery in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        nearer, tied = rank_counts(queries, gallery, pairs)
        ranks = (nearer + tied / 2).cpu().numpy()
        metrics[f"{name}_mean_rank"] = float(ranks.mean() + 1)
        metrics[f"{name}_median_rank"] = float(np.floor(np.median(ranks)) + 1)
        for k in (1, 5, 10):
            metrics[f"{name}_R@{k}"] = expected_recall(nearer, tied, k)
    return metrics


def validation_metrics(
    model: HySAC, loss: ClipLikeLoss, data: Mapping[str, Any], epoch: int, args: argparse.Namespace
) -> dict[str, float]:
    """The loss of the validation batches, and the retrieval among all of them.

    Args:
        model: in evaluation mode.
        loss: for one process.
        data: open_clip's; without ``"val"``, or where ``--val-frequency`` says so, nothing is measured.
        epoch: how many are done.
        args: open_clip's.

    Returns:
        ``clip_val_loss``, the contrastive terms; ``entailment_val_loss``, the weighted others; both as means
        over items of batches; :func:`retrieval_metrics`, of quadruplets for the safe pairs, and the paper's
        columns by their names; ``curvature``, ``epoch`` and ``num_samples``.
    """
    if "val" not in data or not _is_due(epoch, args.val_frequency, args.epochs):
        return {}
    sums: dict[str, float] = {}
    images, texts = [], []
    with torch.inference_mode():
        for batch in data["val"].dataloader:
            output = _forward(model, args, *batch)
            for name, term in loss(**output, output_dict=True).items():
                kind = "clip_val_loss" if name.startswith("contrastive") else "entailment_val_loss"
                sums[kind] = sums.get(kind, 0.0) + term.item() * len(batch[0])
            images.append(output["image_features"].cpu())
            texts.append(output["text_features"].cpu())
    image, text = torch.cat(images), torch.cat(texts)
    metrics = {name: total / len(image) for name, total in sums.items()}
    if image.dim() == 3:
        metrics |= _columns(image, text)
        image, text = image[:, 0], text[:, 0]
    metrics |= retrieval_metrics(image, text)
    return metrics | {"curvature": model.curvature.item(), "epoch": epoch, "num_samples": len(image)}


def zero_shot_metrics(
    model: HySAC, data: Mapping[str, Any], epoch: int, args: argparse.Namespace, tokenizer: Any
) -> dict[str, float]:
    """Top-1 and top-5 accuracy on ImageNet under open_clip's names, of classes that keep their radius.

    Args:
        model, epoch, args: see :func:`validation_metrics`.
        data: open_clip's; without ``"imagenet-val"`` and ``"imagenet-v2"``, or where
            ``--zeroshot-frequency`` says so, nothing is measured.
        tokenizer: the model's.
    """
    names = {"imagenet-val": "imagenet-zeroshot-val", "imagenet-v2": "imagenetv2-zeroshot-val"}
    names = {split: name for split, name in names.items() if split in data}
    if not names or not _is_due(epoch, args.zeroshot_frequency, args.epochs):
        return {}
    logging.info("Starting zero-shot imagenet.")
    with _autocast(args):
        classifier = build_zero_shot_classifier(
            model,
            tokenizer,
            open_clip.IMAGENET_CLASSNAMES,
            open_clip.OPENAI_IMAGENET_TEMPLATES,
            device=args.device,
            use_tqdm=True,
        )
    metrics: dict[str, float] = {}
    for split, name in names.items():
        hits, count = {1: 0, 5: 0}, 0
        for images, target in data[split].dataloader:
            with torch.inference_mode(), _autocast(args):
                logits = classifier(model.encode_image(_images(images, args), normalize=True))
            is_it = logits.topk(5, dim=1).indices == target.to(logits.device)[:, None]
            count += len(target)
            hits = {k: right + int(is_it[:, :k].sum()) for k, right in hits.items()}
        metrics |= {f"{name}-top{k}": right / count for k, right in hits.items()}
    logging.info("Finished zero-shot imagenet.")
    return metrics


def _columns(image: Tensor, text: Tensor) -> dict[str, float]:
    table = retrieval_table(
        Embeddings(image[:, 0], image[:, 1], text[:, 0], text[:, 1], curv=1.0), (1, 5, 10)
    )
    return {f"{column} {k}": recall for column, recalls in table.items() for k, recall in recalls.items()}


def _is_due(epoch: int, frequency: int, epochs: int) -> bool:
    return bool(frequency) and (epoch % frequency == 0 or epoch == epochs)


def _autocast(args: argparse.Namespace) -> Any:
    from open_clip_train.precision import get_autocast

    return get_autocast(args.precision, device_type=torch.device(args.device).type)()


def _images(images: Tensor, args: argparse.Namespace) -> Tensor:
    return images.to(args.device, open_clip.get_input_dtype(args.precision), non_blocking=True)


def _forward(model: HySAC, args: argparse.Namespace, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    with _autocast(args):
        return model(_images(images, args), texts.to(args.device, non_blocking=True))
