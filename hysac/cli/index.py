"""``hysac index``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from hysac.cli.command import Command, Formatter
from hysac.cli.flags import add_inputs, add_scorer
from hysac.cli.inputs import inputs_of, load_scorer, open_index
from hysac.index.store import Index
from hysac.models.pretrained import model_directory
from hysac.scoring.identity import weights_digest
from hysac.scoring.items import Item
from hysac.scoring.scorer import SafetyScorer
from hysac.scoring.streaming import Encoded, encode_items
from hysac.training.loop import chosen_workers

log = logging.getLogger(__name__)

_EPILOG = """\
INPUT is as for `hysac score`. The index holds the points of images and captions, where they lie and how
unsafe they are, not the images themselves. It remembers the model that made it; no other can search it.

examples:
  hysac index build --model-dir runs/demo photos/ captions.txt --out photos.index
  hysac index add --index photos.index more-photos/
  hysac index delete --index photos.index photos/1.jpg
  hysac index info --index photos.index
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="make an index", formatter_class=Formatter)
    build.add_argument("--out", required=True, metavar="INDEX", help="a new folder")
    add_inputs(build)
    add_scorer(build, decides=False)
    build.set_defaults(run=_build)
    add = actions.add_parser("add", help="add items", formatter_class=Formatter)
    add.add_argument("--index", required=True, metavar="INDEX", help="the index")
    add_inputs(add)
    add_scorer(add, decides=False, required=False)
    add.set_defaults(run=_add)
    delete = actions.add_parser("delete", help="delete items by their names", formatter_class=Formatter)
    delete.add_argument("--index", required=True, metavar="INDEX", help="the index")
    delete.add_argument("names", nargs="+", metavar="NAME", help="as `hysac index info --names` prints it")
    delete.set_defaults(run=_delete)
    info = actions.add_parser("info", help="say what is in it", formatter_class=Formatter)
    info.add_argument("--index", required=True, metavar="INDEX", help="the index")
    info.add_argument("--names", action="store_true", help="print every item's name")
    info.set_defaults(run=_info)


def _build(args: argparse.Namespace) -> int:
    items = inputs_of(args)
    directory = model_directory(Path(args.model_dir))
    scorer = load_scorer(args)
    index = Index.create(
        Path(args.out),
        model=weights_digest(directory),
        model_dir=str(directory.resolve()),
        curv=float(scorer.model.curvature.detach()),
        width=scorer.model.embed_dim,
    )
    return _fill(args, index, scorer, items)


def _add(args: argparse.Namespace) -> int:
    index = open_index(args)
    items = inputs_of(args)
    return _fill(args, index, load_scorer(args), items)


def _delete(args: argparse.Namespace) -> int:
    index = Index.open(Path(args.index))
    index.delete(args.names)
    print(f"{len(index)} items left in {index.path}")
    return 0


def _info(args: argparse.Namespace) -> int:
    index = Index.open(Path(args.index))
    if args.names:
        print("\n".join(index.names()))
        return 0
    images = int((index.is_image() & index.is_there()).sum())
    print(f"{len(index)} items: {images} images, {len(index) - images} texts")
    print(f"points of width {index.width}, curvature {index.curv:.6g}")
    print(f"made by {index.model_dir} ({index.model[:12]}...)")
    return 0


def _fill(args: argparse.Namespace, index: Index, scorer: SafetyScorer, items: Sequence[Item]) -> int:
    workers = chosen_workers(args.workers)

    def batches() -> Iterator[Sequence[Encoded]]:
        with tqdm(desc="index", total=len(items), unit="item", disable=not sys.stderr.isatty()) as bar:
            for batch in encode_items(scorer, items, workers=workers):
                yield batch
                bar.update(len(batch))

    faults = index.add(batches())
    for name, fault in faults[:20]:
        log.warning("%s: %s", name, fault)
    unread = f", {len(faults)} could not be read" if faults else ""
    print(f"{len(items) - len(faults)} items added{unread}; {len(index)} in {index.path}")
    return 0


def _no_action(args: argparse.Namespace) -> int:
    raise AssertionError("the parser requires an action")


COMMAND = Command(
    "index",
    "(build | add | delete | info) ...",
    "make images and captions searchable",
    _EPILOG,
    _add_flags,
    _no_action,
)
