"""Hyperbolic Safety-Aware CLIP on open_clip: model, adapters, loss, data, training, evaluation and safety."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hysac.embeddings import Embeddings, encode_dataset
    from hysac.evaluation import evaluate, retrieval_table, safety_metrics
    from hysac.evaluation.classifier import ZeroShotClassifier, build_zero_shot_classifier
    from hysac.models.convert import from_reference, load_reference_checkpoint
    from hysac.models.factory import (
        create_model,
        create_model_and_transforms,
        from_pretrained,
        get_tokenizer,
        transforms,
    )
    from hysac.models.hub import push_to_hub
    from hysac.models.lora import add_lora, load_lora, lora_parameters, lora_state_dict, merge_lora
    from hysac.models.loss import HySACLoss
    from hysac.models.model import HySAC
    from hysac.models.pair_loss import LorentzClipLoss
    from hysac.models.peft_adapter import merge_adapter
    from hysac.models.pretrained import save_pretrained
    from hysac.models.sharded import fully_shard_model
    from hysac.safety import Bounds, Traversal, fit_bounds, traverse, unsafe_score
    from hysac.scoring import SafetyScorer

__all__ = [
    "Bounds",
    "Embeddings",
    "HySAC",
    "HySACLoss",
    "LorentzClipLoss",
    "SafetyScorer",
    "Traversal",
    "ZeroShotClassifier",
    "add_lora",
    "build_zero_shot_classifier",
    "create_model",
    "create_model_and_transforms",
    "encode_dataset",
    "evaluate",
    "fit_bounds",
    "from_pretrained",
    "from_reference",
    "fully_shard_model",
    "get_tokenizer",
    "load_lora",
    "load_reference_checkpoint",
    "lora_parameters",
    "lora_state_dict",
    "merge_adapter",
    "merge_lora",
    "push_to_hub",
    "retrieval_table",
    "safety_metrics",
    "save_pretrained",
    "transforms",
    "traverse",
    "unsafe_score",
]

_MODULES = {
    "embeddings": ("Embeddings", "encode_dataset"),
    "evaluation": ("evaluate", "retrieval_table", "safety_metrics"),
    "evaluation.classifier": ("ZeroShotClassifier", "build_zero_shot_classifier"),
    "models.convert": ("from_reference", "load_reference_checkpoint"),
    "models.factory": (
        "create_model",
        "create_model_and_transforms",
        "from_pretrained",
        "get_tokenizer",
        "transforms",
    ),
    "models.hub": ("push_to_hub",),
    "models.lora": ("add_lora", "load_lora", "lora_parameters", "lora_state_dict", "merge_lora"),
    "models.loss": ("HySACLoss",),
    "models.model": ("HySAC",),
    "models.pair_loss": ("LorentzClipLoss",),
    "models.peft_adapter": ("merge_adapter",),
    "models.pretrained": ("save_pretrained",),
    "models.sharded": ("fully_shard_model",),
    "safety": ("Bounds", "Traversal", "fit_bounds", "traverse", "unsafe_score"),
    "scoring": ("SafetyScorer",),
}
_HOMES = {name: f"hysac.{module}" for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # which knows the names that there are

    def __getattr__(name: str) -> Any:
        """Import a public name, or a module, when it is first used: open_clip takes seconds."""
        if name in _HOMES:
            value = getattr(importlib.import_module(_HOMES[name]), name)
            globals()[name] = value
            return value
        try:
            return importlib.import_module(f"hysac.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"hysac.{name}":  # something that the module needs
                raise
            raise AttributeError(f"module 'hysac' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    packages = (module.partition(".")[0] for module in _MODULES)
    return sorted({*globals(), *__all__, *packages})
