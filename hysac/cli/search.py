"""``hysac search`` and ``hysac redirect``."""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import shorten
from typing import Any

from hysac.cli.command import Command
from hysac.cli.flags import add_engine_use, add_scorer
from hysac.cli.inputs import load_scorer, open_index
from hysac.data.images import NAMED_SUFFIXES
from hysac.files import check_writable
from hysac.index import POLICIES, Hit, Index, redirection_path, search
from hysac.index.search import Redirection
from hysac.safety import DEFAULT_STATISTIC
from hysac.scoring.scorer import SafetyScorer, Score

_SEARCH_EPILOG = """\
QUERY is a caption, or an image's path. Captions search images and images search captions, unless --modality
says otherwise.

policies:
  as-asked   the nearest items, whatever they are
  redirect   an unsafe query is moved first: towards the origin, to where the safe class ends (the model's
             bounds), or with --to nearest-safe to the nearest item that is called safe
  block      an unsafe query is not answered, and unsafe items are left out

examples:
  hysac search 'a dog on a meadow' --index photos.index -k 5
  hysac search 'a boat on the sea, in flames' --index photos.index --policy redirect --show found.png
"""

_REDIRECT_EPILOG = """\
Shows the way of an unsafe query to where it is redirected, with the nearest caption and image at each step.

examples:
  hysac redirect 'a boat on the sea, in flames' --index photos.index
  hysac redirect photos/fire.jpg --index photos.index --to nearest-safe --show strip.png
"""


def _add_query(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", metavar="QUERY", help="a caption, or an image's path")
    parser.add_argument("--index", required=True, metavar="INDEX", help="what `hysac index build` made")
    how = parser.add_argument_group("redirection")
    how.add_argument(
        "--to", default="origin", choices=("origin", "nearest-safe"), help="where an unsafe query moves"
    )
    how.add_argument(
        "--statistic",
        default=DEFAULT_STATISTIC,
        choices=("low_05", "avg", "up_95"),
        help="the safe class's distance to the origin that unsafe queries are moved to",
    )
    how.add_argument("--mode", default="geodesic", choices=("geodesic", "paper"), help="rule of redirection")
    how.add_argument(
        "--margin", type=float, metavar="X", default=0.0, help="added to the bound; negative is stricter"
    )
    parser.add_argument("--show", metavar="FILE", help="draw what is found (needs matplotlib)")
    add_engine_use(parser)
    add_scorer(parser, required=False, workers=False)


def _add_search(parser: argparse.ArgumentParser) -> None:
    _add_query(parser)
    parser.add_argument("-k", type=int, default=10, metavar="K", help="how many items")
    parser.add_argument(
        "--policy", default="as-asked", choices=POLICIES, help="what an unsafe query gets, see below"
    )
    parser.add_argument("--modality", choices=("image", "text", "any"), help="kind of items searched")


def _add_redirect(parser: argparse.ArgumentParser) -> None:
    _add_query(parser)
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="points on the path, ends included")
    parser.add_argument(
        "--modality", choices=("image", "text"), help="modality whose safe class ends the path"
    )


def _search(args: argparse.Namespace) -> int:
    index, scorer, query = _open(args)
    answer = search(
        index,
        scorer,
        **query,
        k=args.k,
        modality=args.modality,
        policy=args.policy,
        redirection=_redirection(args),
    )
    print(f"query: {_of_score(answer.query)}")
    if answer.is_blocked:
        print(
            "blocked: the query is unsafe" if answer.query.decision else "blocked: the query was not decided"
        )
        return 0
    if answer.moved:
        print(f"redirected by {answer.moved:.4f}")
    for number, hit in enumerate(answer.hits, start=1):
        print(f"{number:3}  {hit.distance:.4f}  {_of_score(hit.score)}  {_of_hit(hit)}")
    if args.show is not None:
        from hysac import plots

        print(f"picture: {plots.save(plots.found_sheet(args.query, answer), Path(args.show))}")
    return 0


def _redirect(args: argparse.Namespace) -> int:
    index, scorer, query = _open(args)
    modality = args.modality or ("image" if "text" in query else "text")
    score, steps = redirection_path(
        index, scorer, **query, modality=modality, redirection=_redirection(args), steps=args.steps
    )
    print(f"query: {_of_score(score)}")
    if len(steps) == 1:
        print("it stays where it is: it lies where safe ones do")
    for step in steps:
        found = "  |  ".join(_of_hit(hit) for hit in (step.text, step.image) if hit is not None)
        print(f"{step.share:5.0%}  {step.distance:.4f}  {found}")
    if args.show is not None:
        from hysac import plots

        print(f"picture: {plots.save(plots.redirection_strip(args.query, steps), Path(args.show))}")
    return 0


def _open(args: argparse.Namespace) -> tuple[Index, SafetyScorer, dict[str, Any]]:
    if args.show is not None:
        check_writable(Path(args.show))
    index = open_index(args)
    is_image = Path(args.query).suffix.lower() in NAMED_SUFFIXES
    return index, load_scorer(args), {"image" if is_image else "text": args.query}


def _redirection(args: argparse.Namespace) -> Redirection:
    return Redirection(args.to, args.statistic, args.mode, args.margin)


def _of_score(score: Score) -> str:
    told = f"{score.modality} at {score.distance:.4f}"
    told += "" if score.probability is None else f", unsafe with {score.probability:.1%}"
    return told + ("" if score.decision is None else f": {score.decision}")


def _of_hit(hit: Hit) -> str:
    content = hit.item.content
    return shorten(content, 200, placeholder=" ...") if isinstance(content, str) else hit.item.name


COMMAND = Command("QUERY --index INDEX [options]", _SEARCH_EPILOG, _add_search, _search)
REDIRECT = Command("QUERY --index INDEX [options]", _REDIRECT_EPILOG, _add_redirect, _redirect)
