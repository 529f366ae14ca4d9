"""Replays the golden requests against a model server, over REST.

They are what the trained model answered when the version was exported. Needs Python
alone. Exit codes: 0 the same answers, 1 others or none, 2 bad arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

MODEL = "${name}"
# What the precision of the artifact allows.
TOLERANCE = float("${tolerance}")
ARTIFACT = Path(__file__).resolve().parent / "${to_artifact}"
GOLDEN = ARTIFACT / "assets.extra" / "golden_requests.json"


def main() -> int:
    """Compares all answers; prints the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="localhost:8501", help="HOST:PORT")
    parser.add_argument("--model", default=MODEL, help="the name it is served under")
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="the requests")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds")
    args = parser.parse_args()
    try:
        requests = json.loads(args.golden.read_text(encoding="utf-8"))["requests"]
    except OSError as error:
        parser.error(f"{args.golden}: {error.strerror}; name the file with --golden")
    differences: list[float] = []
    # A few at a time: a server that batches refuses more rows than a batch takes.
    for first in range(0, len(requests), 8):
        expected = requests[first : first + 8]
        body = {
            "signature_name": "serving_default",
            "instances": [{"b64": request["example"]} for request in expected],
        }
        url = f"http://{args.host}/v1/models/{args.model}:predict"
        request = urllib.request.Request(url, json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=args.timeout) as response:
                answers = json.load(response)["predictions"]
        except urllib.error.HTTPError as error:
            print(f"refused: {error.code}: {error.read().decode()}", file=sys.stderr)
            return 1
        except OSError as error:
            print(f"{args.host} not reached: {error}", file=sys.stderr)
            return 1
        if len(answers) != len(expected):
            print(f"{len(answers)} answers to {len(expected)} rows", file=sys.stderr)
            return 1
        for golden, answer in zip(expected, answers):
            for wanted, found in zip(golden["probabilities"], answer["probabilities"]):
                differences.append(abs(wanted - found))
    # NaN is not within any tolerance.
    same = all(difference <= args.tolerance for difference in differences)
    print(
        f"{'the same answers' if same else 'OTHER ANSWERS'}: {len(requests)} requests, "
        f"probabilities differ by at most {max(differences):.2g} "
        f"(tolerance {args.tolerance:g})"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
