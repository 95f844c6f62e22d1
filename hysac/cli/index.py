"""``hysac index``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hysac.cli.command import Command, add_parser
from hysac.cli.flags import add_database, add_inputs, add_scorer
from hysac.cli.inputs import inputs_of, load_scorer, open_index, tell_unread
from hysac.index.engine import ENGINES, Address, choose_engine
from hysac.index.store import Index
from hysac.models.pretrained import model_directory
from hysac.scoring.identity import weights_digest
from hysac.scoring.items import Item
from hysac.scoring.scorer import SafetyScorer
from hysac.scoring.streaming import Encoded, encode_items
from hysac.training.loop import chosen_workers

_EPILOG = """\
INPUT is as for `hysac score`. The index holds the points of images and captions, where they lie and how
unsafe they are, not the images themselves. It remembers the model that made it; no other can search it.

Searches compare every point, exactly. Where that is too slow an engine proposes what is near, and the
index ranks it exactly: docs/engines.md says which finds how much. `hysac index engine` builds another one of
the points that are there, or none (exact). Each command is told anew where an engine's database is: the URL
is never written.

examples:
  hysac index build --model-dir runs/demo photos/ captions.txt --out photos.index
  hysac index build --model-dir runs/demo photos/ --out photos.index --engine faiss --engine-option kind=ivf
  HYSAC_ENGINE_URL=postgresql://me@host/db hysac index engine --index photos.index --engine pgvector
  hysac index add --index photos.index more-photos/
  hysac index delete --index photos.index photos/1.jpg
  hysac index info --index photos.index
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, prog="hysac index")
    build = _action(
        actions, "build", "--model-dir DIR INPUT... --out INDEX [options]", "make an index", _build
    )
    build.add_argument("--out", required=True, metavar="INDEX", help="a new folder")
    add_inputs(build)
    _add_engine(build.add_argument_group("engine"), default="exact")
    add_scorer(build, decides=False)
    add = _action(actions, "add", "--index INDEX INPUT... [options]", "add items", _add)
    _add_index(add)
    add_inputs(add)
    add_database(add)
    add_scorer(add, decides=False, required=False)
    delete = _action(
        actions, "delete", "--index INDEX NAME... [options]", "delete items by their names", _delete
    )
    _add_index(delete)
    delete.add_argument("names", nargs="+", metavar="NAME", help="as `hysac index info --names` prints it")
    add_database(delete)
    told = "let another vector engine propose candidates"
    engine = _action(actions, "engine", "--index INDEX --engine NAME [options]", told, _engine)
    _add_index(engine)
    _add_engine(engine, required=True)
    info = _action(actions, "info", "--index INDEX [options]", "print what an index holds", _info)
    _add_index(info)
    info.add_argument("--names", action="store_true", help="print every item's name")


def _action(
    actions: Any, name: str, usage: str, summary: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser = add_parser(actions, f"hysac index {name}", usage, summary, _EPILOG)
    parser.set_defaults(run=run)
    return parser


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", required=True, metavar="INDEX", help="what `hysac index build` made")


def _add_engine(group: Any, **options: Any) -> None:
    group.add_argument("--engine", choices=ENGINES, help="vector engine that proposes candidates", **options)
    group.add_argument(
        "--engine-option",
        action="append",
        default=[],
        metavar="K=V",
        help="an argument of the engine's class; may be repeated",
    )
    add_database(group)


def _build(args: argparse.Namespace) -> int:
    items = inputs_of(args)
    options = _engine_options(args)
    directory = model_directory(Path(args.model_dir))
    scorer = load_scorer(args)
    index = Index.create(
        Path(args.out),
        model=weights_digest(directory),
        model_dir=str(directory.resolve()),
        curv=float(scorer.model.curvature.detach()),
        width=scorer.model.embed_dim,
    )
    try:
        if args.engine != "exact":
            index.use_engine(args.engine, options, url=args.engine_url)
        return _fill(args, index, scorer, items)
    except BaseException:  # an empty index in the way of the next try
        if not len(index):
            shutil.rmtree(index.path.resolve(), ignore_errors=True)  # the error to be told is the first
        raise


def _engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options, after a trial of the engine: before the work, and before anything is written.

    Raises:
        ImportError, TypeError, ValueError: as :func:`hysac.index.engine.choose_engine`; an option without a
            value, or for no engine.
    """
    options = {}
    for pair in args.engine_option:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"--engine-option must be as kind=ivf, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    if args.engine != "exact":
        choose_engine(args.engine, options, Address(args.engine_url))
    elif options or args.engine_url:
        raise ValueError("--engine-option and --engine-url are of an engine: choose one with --engine")
    return options


def _engine(args: argparse.Namespace) -> int:
    index = Index.open(Path(args.index), exact=True)
    index.use_engine(args.engine, _engine_options(args), url=args.engine_url)
    print("\n".join(_of_engine(index)))
    return 0


def _of_engine(index: Index) -> list[str]:
    if index.engine is None:
        return ["searched exactly"]
    where = ", rows in a database" if index.engine.remote else ""
    lines = [f"searched with {index.engine.name}{where}, ranked exactly"]
    for kind, part in index.engine.parts.items():
        lines.append(
            f"  {kind}s: {part.recall:.3f} of the 10 nearest found when it was built, of {part.built}"
            + (f"; table {part.name}" if index.engine.remote else "")
        )
    return lines


def _add(args: argparse.Namespace) -> int:
    index = open_index(args)
    texts = [name.removeprefix("text:") for name in index.names() if name.startswith("text:")]
    items = inputs_of(args, 1 + max((int(number) for number in texts if number.isdecimal()), default=0))
    return _fill(args, index, load_scorer(args), items)


def _delete(args: argparse.Namespace) -> int:
    index = Index.open(Path(args.index), url=args.engine_url)
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
    print("\n".join(_of_engine(index)))
    return 0


def _fill(args: argparse.Namespace, index: Index, scorer: SafetyScorer, items: Sequence[Item]) -> int:
    workers = chosen_workers(args.workers)

    def batches() -> Iterator[Sequence[Encoded]]:
        with tqdm(desc="index", total=len(items), unit="item", disable=not sys.stderr.isatty()) as bar:
            for batch in encode_items(scorer, items, workers=workers):
                yield batch
                bar.update(len(batch))

    faults = index.add(batches())
    tell_unread(faults, len(items))
    unread = f", {len(faults)} could not be read" if faults else ""
    print(f"{len(items) - len(faults)} items added{unread}; {len(index)} in {index.path}")
    if index.engine is not None:
        print("\n".join(_of_engine(index)))
    return 0


def _no_action(args: argparse.Namespace) -> int:
    raise AssertionError("the parser requires an action")


COMMAND = Command("(build | add | delete | engine | info) ...", _EPILOG, _add_flags, _no_action)
