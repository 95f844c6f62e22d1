"""Score images and texts with what `hysac export` wrote, as `hysac score` does, without PyTorch.

pip install numpy pillow onnxruntime tokenizers ftfy
python score_without_torch.py exported photo.jpg --text 'a dog on a meadow'
"""

import argparse
import html
import json
from pathlib import Path

import ftfy
import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

INPUTS = {"text": "tokens", "image": "pixels"}
CLASSES = {"text": ("S", "U"), "image": ("V", "G")}
CLEAN = {"lower": str.lower, "whitespace": str}


class Scorer:
    """The graphs of a directory, and what its ``export.json`` says of their inputs and thresholds."""

    def __init__(self, directory, suffix=".onnx", threads=0):
        self.about = json.loads((Path(directory) / "export.json").read_text())
        if self.about["text"]["tokenizer"] != "open_clip":
            raise ValueError("the tokenizer is one of transformers, see text in export.json")
        self.tokenizer = Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.graphs = {
            modality: onnxruntime.InferenceSession(Path(directory) / f"{modality}{suffix}", options)
            for modality in CLASSES
        }

    def __call__(self, modality, item):
        """The score of a PIL image or a text: a dictionary."""
        batch = self.pixels(item) if modality == "image" else self.tokens(item)
        points, distances = self.graphs[modality].run(None, {INPUTS[modality]: batch})
        if not (np.isfinite(points).all() and np.isfinite(distances).all()):
            raise FloatingPointError("the distance is not finite, which tells nothing")
        distance = float(distances.max())  # of a long text, the farthest window counts
        return {"modality": modality, "distance": distance, **self.judge(modality, distance)}

    def judge(self, modality, distance):
        """What a distance means: None where the model was not calibrated, or has no bounds."""
        thresholds, bounds, found = self.about["thresholds"], self.about["bounds"] or {}, {}
        if thresholds and (known := thresholds["modalities"].get(modality)):
            found["probability"] = known["probability"] and probability(known["probability"], distance)
            limit = known["points"][thresholds["default"]]["threshold"]
            found["decision"] = "safe" if distance <= limit else "unsafe"
        if set(CLASSES[modality]) <= set(bounds):
            safe, unsafe = (abs(distance - bounds[letter]["avg"]) for letter in CLASSES[modality])
            found["nearest_class"] = f"{'safe' if safe <= unsafe else 'unsafe'} {modality}"
        return {name: found.get(name) for name in ("probability", "decision", "nearest_class")}

    def pixels(self, image):
        """(1, 3, H, W): upright RGB, resized and cropped, normalised."""
        about = self.about["image"]
        mean, std = (np.float32(about[name]) for name in ("mean", "std"))
        pixels = np.asarray(fitted(rgb(image), about), np.float32) / np.float32(255)
        return ((pixels - mean) / std).transpose(2, 0, 1)[None]

    def tokens(self, text):
        """(W, L): as many windows as the text takes, each half over the one before."""
        about = self.about["text"]
        if not 0 < len(text.strip()) <= about["max_characters"]:
            raise ValueError("a text must not be empty, nor longer than a caption")
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        ids = self.tokenizer.encode(CLEAN[about["clean"]](" ".join(text.split()))).ids
        room = about["context_length"] - 2
        last = max(len(ids) - room, 0)
        starts = [*range(0, last, max(room // 2, 1)), last]
        windows = np.zeros((len(starts), room + 2), np.int64)
        for window, start in zip(windows, starts, strict=True):
            part = [about["start"], *ids[start : start + room], about["end"]]
            window[: len(part)] = part
        return windows


def probability(curve, distance):
    if curve["kind"] == "isotonic":
        return float(np.interp(distance, curve["x"], curve["y"]))
    centre, slope = curve["x"]
    return float(0.5 * (1 + np.tanh(0.5 * slope * (distance - centre))))


def rgb(image):
    """Upright and 8-bit; 16 bits are scaled, the colours below transparent pixels show."""
    is_deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    image = ImageOps.exif_transpose(image)
    if is_deep:
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r} has no defined range")
    return (image.convert("RGBA") if image.has_transparency_data else image).convert("RGB")


def fitted(image, about):
    """Resized as ``resize_mode`` says, and its centre on a canvas of the model's size."""
    (height, width), mode = about["size"], about["resize_mode"]
    if mode == "squash":
        size = (width, height)
    elif mode == "shortest" and width == height:
        size = tuple(width * side // min(image.size) for side in image.size)
    else:
        ratio = (max if mode == "longest" else min)(image.height / height, image.width / width)
        size = (round(image.width / ratio), round(image.height / ratio))
    image = image.resize(size, Image.Resampling[about["interpolation"].upper()])
    canvas = Image.new("RGB", (width, height), (about["fill_color"] if mode == "longest" else 0,) * 3)
    canvas.paste(image, tuple(map(margin, canvas.size, image.size)))
    return canvas


def margin(wanted, side):
    """Before the image if it is smaller than wanted, or, negative, what is cut off."""
    return (wanted - side) // 2 if side < wanted else -round((side - wanted) / 2)


def main():
    parser = argparse.ArgumentParser(description="Score images and texts without PyTorch.")
    parser.add_argument("directory", help="what `hysac export` wrote")
    parser.add_argument("images", nargs="*", help="image files")
    parser.add_argument("--text", action="append", default=[], help="a text; may be repeated")
    parser.add_argument("--int8", action="store_true", help="by the graphs with 8-bit weights")
    args = parser.parse_args()
    scorer = Scorer(args.directory, ".int8.onnx" if args.int8 else ".onnx")
    for path in args.images:
        try:
            with Image.open(path) as image:
                told = scorer("image", image)
        except (OSError, SyntaxError, ValueError) as error:  # of one file; the others are scored
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"item": path, **told}))
    for text in args.text:
        print(json.dumps({"item": text, **scorer("text", text)}))


if __name__ == "__main__":
    main()
