"""A worker's side: loads one model, then answers requests and times itself.

Every contender's process runs this, whatever its environment; Python 3.7 must do.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main(load):
    """Serves the driver until it closes the standard input.

    The command line has the contender's name, the model's directory, the requests'
    file and a file for what libraries have to say.

    Args:
      load: makes a contender of its name and directory: by measure ("text", "ids")
        two functions, one that prepares a request beforehand and one that answers
        what was prepared with a list of scores.
    """
    contender, directory, requests_file, log = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    def reply(function, arguments):
        try:
            answer = {"result": function(*arguments)}
        except Exception as error:
            words = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {words[0][:300]}"}
        print(json.dumps(answer), file=replies, flush=True)
        return "result" in answer

    state = {}

    def start():
        with open(requests_file, encoding="utf-8") as file:
            state["requests"] = json.load(file)
        state["ways"] = load(contender, directory)
        state["prepared"] = {}
        return "ready"

    def prepared(measure, kind, index):
        key = measure, kind, index
        if key not in state["prepared"]:
            prepare, _ = state["ways"][measure]
            state["prepared"][key] = prepare(state["requests"][kind][index])
        return state["prepared"][key]

    def timed(measure, kind, indices):
        """Milliseconds of each request."""
        _, answer = state["ways"][measure]
        requests = [prepared(measure, kind, index) for index in indices]
        taken = []
        for request in requests:
            before = time.perf_counter()
            answer(request)
            taken.append(1000 * (time.perf_counter() - before))
        return taken

    def scores(measure, kind, count):
        """Of the first requests of a kind; of all where count is None."""
        prepare, answer = state["ways"][measure]
        return [
            [float(score) for score in answer(prepare(request))]
            for request in state["requests"][kind][:count]
        ]

    functions = {
        "ways": lambda: sorted(state["ways"]),
        "time": timed,
        "scores": scores,
    }
    if not reply(start, []):
        return
    for line in sys.stdin:
        request = json.loads(line)
        reply(functions[request["call"]], request["args"])
