"""Quadruplet data: manifests of image files, shards, and a procedurally drawn set that needs no files."""

from hysac.data.dataset import QuadrupletDataset, open_dataset
from hysac.data.images import ToRGB, load_image, to_rgb
from hysac.data.items import Quadruplets, collate
from hysac.data.loading import Batches
from hysac.data.manifest import Manifest, Quadruplet, load_manifest, save_manifest, verify_images
from hysac.data.shards import load_shards
from hysac.data.toy import ToyQuadruplets, write_toy

__all__ = [
    "Batches",
    "Manifest",
    "Quadruplet",
    "QuadrupletDataset",
    "Quadruplets",
    "ToRGB",
    "ToyQuadruplets",
    "collate",
    "load_image",
    "load_manifest",
    "load_shards",
    "open_dataset",
    "save_manifest",
    "to_rgb",
    "verify_images",
    "write_toy",
]
