"""Train image-text pairs in open_clip's program, by distance, and compare two ways to rank the result.

    python docs/examples/train_with_open_clip.py --folder /tmp/pairs

It draws toy images with captions, trains `hysac-toy` on them, and prints the ranks of the true partners: as
open_clip's own validation would count them, by dot products, and by distance, as the run recorded them.
"""

import argparse
import csv
import json
from pathlib import Path

import torch
from PIL import Image

import hysac
from hysac.data import load_manifest, write_toy
from hysac.open_clip_trainer.launcher import main as train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--folder", type=Path, required=True)
parser.add_argument("--train-size", type=int, default=512)
parser.add_argument("--val-size", type=int, default=256)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--epochs", type=int, default=10)
args = parser.parse_args()

# Tables as open_clip reads them: a file and a caption a row.
manifests = write_toy(args.folder, train_size=args.train_size, val_size=args.val_size, progress=False)
tables, pairs = {}, {}
for split, manifest in manifests.items():
    pairs[split] = [(str(row.safe_image), row.safe_caption) for row in load_manifest(manifest).records]
    tables[split] = args.folder / f"{split}.csv"
    with open(tables[split], "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("filepath", "title"), *pairs[split]])

train(
    f"--lorentz --model hysac-toy --train-data {tables['train']} --val-data {tables['val']}"
    f" --batch-size {args.batch_size} --epochs {args.epochs} --lr 3e-3 --warmup 10 --wd 0.05 --workers 0"
    f" --precision fp32 --device cpu --val-frequency {args.epochs} --logs {args.folder} --name run".split()
)

# The run is a model directory, too.
model = hysac.from_pretrained(args.folder / "run")
transform, tokenizer = hysac.transforms(model)[1], hysac.get_tokenizer("hysac-toy")
paths, captions = zip(*pairs["val"], strict=True)
with torch.no_grad():
    image = model.encode_image(torch.stack([transform(Image.open(path)) for path in paths]), normalize=True)
    text = model.encode_text(tokenizer(captions), normalize=True)

order = (image @ text.T).argsort(descending=True)
by_dot_product = (order == torch.arange(len(text))[:, None]).nonzero()[:, 1] + 1.0
recorded = json.loads((args.folder / "run/checkpoints/results.jsonl").read_text().splitlines()[-1])
print(f"curvature {recorded['curvature']:.3f}")
print(f"{'image to text':16}{'mean rank':>10}{'R@1':>8}{'R@10':>8}")
for name, mean, *recalls in (
    ("dot product", by_dot_product.mean(), *((by_dot_product <= k).float().mean() for k in (1, 10))),
    ("distance", *(recorded[f"image_to_text_{figure}"] for figure in ("mean_rank", "R@1", "R@10"))),
):
    print(f"{name:16}{mean:10.2f}" + "".join(f"{recall:8.1%}" for recall in recalls))
