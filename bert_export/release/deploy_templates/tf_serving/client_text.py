"""What both clients share: arguments, the marked mention, the ranking's table."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

MODEL = "${name}"
# The mention is NIL if no candidate's link probability reaches it; chosen on dev data.
NIL_THRESHOLD = float("${nil_threshold}")


class Mention(NamedTuple):
    """A text and where its mention is, in characters (code points)."""

    text: str
    start: int
    end: int  # behind the last character


class Ranking(NamedTuple):
    """Candidates' numbers, in the order in which they were sent."""

    probabilities: list[float]  # softmax of the scores
    link_probabilities: list[float]  # each candidate's on its own
    scores: list[float]  # its log odds


def parse_arguments(description: str, port: int) -> argparse.Namespace:
    """Reads the command line; ends the program with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--host", default=f"localhost:{port}", help="HOST:PORT")
    parser.add_argument("--model", default=MODEL, help="the name it is served under")
    parser.add_argument(
        "--text",
        type=mark,
        required=True,
        help="with the mention in brackets: 'He sat on the [[bank]].'",
    )
    parser.add_argument(
        "--candidate",
        action="append",
        required=True,
        help="an entity, as 'name, alias: description'; give one a candidate",
    )
    parser.add_argument(
        "--signature",
        choices=("link", "text"),
        default="link",
        help="link: one mention; text: rows, which may be batched with others'",
    )
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds")
    return parser.parse_args()


def mark(marked: str) -> Mention:
    """The mention in double brackets.

    Raises:
      argparse.ArgumentTypeError: there is not exactly one, or it is blank.
    """
    before, opening, rest = marked.partition("[[")
    surface, closing, after = rest.partition("]]")
    one = opening and closing and not any(m in after for m in ("[[", "]]"))
    if not one or "[[" in surface or "]]" in before or not surface.strip():
        raise argparse.ArgumentTypeError(
            f"expected one mention in double brackets, found {marked!r}"
        )
    end = len(before) + len(surface)
    return Mention(before + surface + after, len(before), end)


def rank_rows(probabilities: list[list[float]], scores: list[float]) -> Ranking:
    """The ranking of rows that the signature `text` scored one by one."""
    best = max(scores)
    powers = [math.exp(score - best) for score in scores]
    total = sum(powers)
    shares = [power / total for power in powers]
    return Ranking(shares, [row[1] for row in probabilities], scores)


def print_ranking(candidates: Sequence[str], ranking: Ranking) -> None:
    """Prints the candidates, best first, and whether the mention is NIL."""
    print(f"{'rank':>4}  {'probability':>11}  {'link':>8}  {'score':>9}  candidate")
    order = sorted(range(len(candidates)), key=lambda i: -ranking.scores[i])
    for rank, i in enumerate(order, 1):
        print(
            f"{rank:>4}  {ranking.probabilities[i]:>11.6f}"
            f"  {ranking.link_probabilities[i]:>8.6f}  {ranking.scores[i]:>9.5f}"
            f"  {candidates[i]}"
        )
    if max(ranking.link_probabilities) < NIL_THRESHOLD:
        print(f"NIL: no link probability reaches {NIL_THRESHOLD}")
