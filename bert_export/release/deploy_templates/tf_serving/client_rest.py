"""Ranks a mention's candidates with a served linker, over REST.

Needs Python alone. Exit codes: 0 answered, 1 refused or not reached, 2 bad arguments.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any

from client_text import Mention, Ranking, parse_arguments, print_ranking, rank_rows


def predict(host: str, model: str, body: dict[str, Any], timeout: float) -> Any:
    """POSTs a request to the model's newest version; returns the decoded answer."""
    request = urllib.request.Request(
        f"http://{host}/v1/models/{model}:predict",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.load(response)


def link_body(mention: Mention, candidates: list[str]) -> dict[str, Any]:
    """A request for `link`. Its inputs have no common rows, so they go as columns."""
    inputs = {
        "text": mention.text,
        "mention_start": mention.start,
        "mention_end": mention.end,
        "candidates": candidates,
    }
    return {"signature_name": "link", "inputs": inputs}


def text_body(mention: Mention, candidates: list[str]) -> dict[str, Any]:
    """A request for `text`: a row a candidate."""
    instances = [
        {
            "text": mention.text,
            "mention_start": mention.start,
            "mention_end": mention.end,
            "candidate": candidate,
        }
        for candidate in candidates
    ]
    return {"signature_name": "text", "instances": instances}


def main() -> int:
    """Asks once and prints the answer."""
    args = parse_arguments(__doc__, port=8501)
    make_body = link_body if args.signature == "link" else text_body
    body = make_body(args.text, args.candidate)
    try:
        answer = predict(args.host, args.model, body, args.timeout)
    except urllib.error.HTTPError as error:
        print(f"refused: {error.code}: {error.read().decode()}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{args.host} not reached: {error}", file=sys.stderr)
        return 1
    if args.signature == "link":
        outputs = answer["outputs"]
        ranking = Ranking(
            outputs["probabilities"], outputs["link_probability"], outputs["score"]
        )
    else:
        rows = answer["predictions"]
        ranking = rank_rows(
            [row["probabilities"] for row in rows], [row["score"] for row in rows]
        )
    print_ranking(args.candidate, ranking)
    return 0


if __name__ == "__main__":
    sys.exit(main())
