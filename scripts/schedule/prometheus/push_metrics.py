#!/usr/bin/env python3
"""Sends the metrics of `retrain --metrics_file` to a Prometheus Pushgateway.

For what no node_exporter reads the files of, such as pods. With `retrain`:

    --metrics_file=FILE --notify_command='push-metrics FILE http://pushgateway:9091'
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request


def main(argv: list[str]) -> int:
    """Sends one file.

    Args:
      argv: program name, file in Prometheus' text format, URL of the Pushgateway.

    Returns:
      The exit code: 0 sent, 1 not taken, 2 bad usage.
    """
    if len(argv) != 3:
        print(f"usage: {argv[0]} FILE.prom URL", file=sys.stderr)
        return 2
    _, path, url = argv
    try:
        with open(path, "rb") as file:
            content = file.read()
        # POST replaces the metrics of these names and leaves those that this run has
        # not got; PUT would remove them.
        request = urllib.request.Request(
            f"{url.rstrip('/')}/metrics/job/bert_export", data=content, method="POST"
        )
        with urllib.request.urlopen(request, timeout=20):
            return 0
    except urllib.error.HTTPError as error:
        reason = error.read(500).decode(errors="replace").strip()
        print(f"push-metrics: {url}: {error.code}: {reason}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"push-metrics: {path} to {url}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
