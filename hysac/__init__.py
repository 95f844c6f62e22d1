"""Hyperbolic Safety-Aware CLIP on open_clip: model, adapters, loss, data, training, evaluation and safety."""

from hysac.convert import from_reference, load_reference_checkpoint
from hysac.factory import (
    create_model,
    create_model_and_transforms,
    from_pretrained,
    get_tokenizer,
    transforms,
)
from hysac.lora import add_lora, load_lora, lora_parameters, lora_state_dict, merge_lora
from hysac.model import HySAC
from hysac.pretrained import save_pretrained

__all__ = [
    "HySAC",
    "add_lora",
    "create_model",
    "create_model_and_transforms",
    "from_pretrained",
    "from_reference",
    "get_tokenizer",
    "load_lora",
    "load_reference_checkpoint",
    "lora_parameters",
    "lora_state_dict",
    "merge_lora",
    "save_pretrained",
    "transforms",
]
