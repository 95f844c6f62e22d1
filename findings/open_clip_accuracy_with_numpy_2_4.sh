#!/usr/bin/env bash
# The ImageNet accuracy of open_clip's training program, and clip_benchmark's, with NumPy 2.4.
#
# open_clip_torch 3.3.0 (open_clip_train.zero_shot.accuracy) and clip_benchmark 1.6.2 (zeroshot_classification.accuracy):
#   both turn an array of one element and one dimension into a number by float(), which NumPy 2.4 no longer does
#   NumPy 2.3.5: the accuracies, with a DeprecationWarning; NumPy 2.4.6: TypeError. `open_clip_train.main --imagenet-val`
#     thus trains its first epochs, encodes 80,000 prompts, and then stops
# Expected before it was run: the accuracies with both, as the packages bound NumPy by nothing.
# Fails if any of it behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'torch==2.14.1' torchvision 'open_clip_torch==3.3.0' scikit-learn 'numpy==2.3.5'
"$work/venv/bin/pip" install -q --no-deps 'clip_benchmark==1.6.2'
cat > "$work/accuracy.py" <<'PY'
import sys
import warnings

import numpy
import torch
from clip_benchmark.metrics.zeroshot_classification import accuracy as of_clip_benchmark
from open_clip_train.zero_shot import accuracy as of_open_clip

warnings.simplefilter("ignore")
logits, target = torch.eye(6), torch.tensor([0, 1, 2, 0, 0, 0])
works = sys.argv[1] == "works"
for name, accuracy, wanted in (("open_clip", of_open_clip, 3.0), ("clip_benchmark", of_clip_benchmark, 0.5)):
    try:
        got = accuracy(logits, target, topk=(1,))
    except TypeError as error:
        got = error
    print(f"numpy {numpy.__version__}: {name}: {got}")
    assert (got == [wanted]) == works
    assert isinstance(got, TypeError) != works
PY
"$work/venv/bin/python" "$work/accuracy.py" works
"$work/venv/bin/pip" install -q 'numpy==2.4.6'
"$work/venv/bin/python" "$work/accuracy.py" fails
# Output seen:
#   numpy 2.3.5: open_clip: [3.0]
#   numpy 2.3.5: clip_benchmark: [0.5]
#   numpy 2.4.6: open_clip: only 0-dimensional arrays can be converted to Python scalars
#   numpy 2.4.6: clip_benchmark: only 0-dimensional arrays can be converted to Python scalars
