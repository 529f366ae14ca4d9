"""Runs a frozen graph in TensorFlow as measure.py says: a JSON line in, one out.

Usage: python python_graph.py
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

OUTPUTS = ("probabilities", "score")


class FrozenGraph:
    """A graph with TensorFlow's own optimizations and number of threads."""

    def __init__(self, graph: str, inputs: str):
        """Loads it and runs it once.

        Args:
          graph: the file, a GraphDef with nodes named as `OUTPUTS`.
          inputs: a JSON file: by name of a placeholder its shape, dtype and values.
        """
        definition = tf.compat.v1.GraphDef.FromString(Path(graph).read_bytes())
        with tf.Graph().as_default() as loaded:
            tf.import_graph_def(definition, name="")
        self.session = tf.compat.v1.Session(graph=loaded)
        self.feeds = {
            f"{name}:0": np.reshape(
                np.array(
                    value["values"],
                    loaded.get_tensor_by_name(f"{name}:0").dtype.as_numpy_dtype,
                ),
                value["shape"],
            )
            for name, value in json.loads(Path(inputs).read_text("utf-8")).items()
        }

    def run(self) -> dict[str, np.ndarray]:
        """The outputs by name."""
        fetches = {name: f"{name}:0" for name in OUTPUTS}
        return self.session.run(fetches, self.feeds)

    def time(self, seconds: float, least: int) -> list[float]:
        """Milliseconds of each run, from arrays to arrays."""
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < least or time.perf_counter() < end:
            began = time.perf_counter()
            self.run()
            times.append((time.perf_counter() - began) * 1000)
        return times


def main() -> None:
    """Answers calls until the input ends."""
    graphs: dict[str, FrozenGraph] = {}

    def load(name: str, graph: str, inputs: str) -> dict[str, Any]:
        graphs[name] = FrozenGraph(graph, inputs)
        outputs = graphs[name].run()
        return {key: value.ravel().tolist() for key, value in outputs.items()}

    def timed(name: str, seconds: float, least: int) -> list[float]:
        return graphs[name].time(seconds, least)

    def about() -> dict[str, Any]:
        return {"tensorflow": tf.__version__, "python": sys.version.split()[0]}

    functions = {"load": load, "time": timed, "about": about}
    print(json.dumps({"result": "ready"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        result = functions[request["call"]](*request["args"])
        print(json.dumps({"result": result}), flush=True)


if __name__ == "__main__":
    main()
