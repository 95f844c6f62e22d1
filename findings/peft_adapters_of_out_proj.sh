#!/usr/bin/env bash
# What PEFT's adapters of out_proj do in open_clip's attention: nothing while they are trained, something once merged.
#
# peft 0.21.2, open_clip_torch 3.3.0, PyTorch 2.14.1, CPU:
#   target_modules=["out_proj"], or "all-linear", wraps attn.out_proj of every block without a warning. Attention is
#     torch.nn.MultiheadAttention, which hands out_proj.weight to a function and never calls the module: features are
#     those of the base to rounding whatever the adapters hold, and their gradients are None, so that no step moves them
#     (output seen: 2e-7; a wrapped module takes the attention's slower path)
#   merge_and_unload() adds them to the weight all the same: features that were those of the base differ by 19 %
#   c_fc beside it, a module that is called, behaves: its adapters have gradients, and merging changes nothing
# Expected before it was run: that PEFT refuses a module of which only the weight is read, as it does the attention
#   itself where that is no MultiheadAttention, or that merging gives the outputs from before it.
# Fails if any of it behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'torch==2.14.1' 'open_clip_torch==3.3.0' 'peft==0.21.2' 'transformers==5.24.0'
cat > "$work/adapters.py" <<'PY'
import importlib.metadata as metadata

import open_clip
import torch
from peft import LoraConfig, get_peft_model

print(*(f"{name} {metadata.version(name)}" for name in ("peft", "open_clip_torch", "torch")))
CFG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 2},
}
image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def adapted(target):
    """The base's features, those under random adapters and after merging; and whether adapters have gradients."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**CFG).eval()
    with torch.no_grad():
        base = model.encode_image(image)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=[target]))
    factors = [p for name, p in wrapped.named_parameters() if "lora_" in name and ".visual." in name]
    for factor in factors:
        torch.nn.init.normal_(factor, std=0.2)
    features = model.encode_image(image)
    if features.requires_grad:
        features.sum().backward()
    has_gradients = any(factor.grad is not None for factor in factors)
    merged = wrapped.merge_and_unload()
    with torch.no_grad():
        return len(factors), base, features.detach(), merged.encode_image(image), has_gradients


def difference(one, other):
    return ((one - other).norm() / other.norm()).item()


for target, is_called in (("out_proj", False), ("c_fc", True)):
    count, base, adapters, merged, has_gradients = adapted(target)
    print(
        f"{target}: {count} factors, gradients {has_gradients}; adapters change features by "
        f"{difference(adapters, base):.2g}, merging by {difference(merged, adapters):.2g}"
    )
    assert count == 4
    assert has_gradients == is_called
    assert (difference(adapters, base) > 1e-3) == is_called
    assert (difference(merged, adapters) < 1e-5) == is_called
PY
"$work/venv/bin/python" -W ignore "$work/adapters.py"
