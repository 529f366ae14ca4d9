"""Plots dev link accuracy against the pairs seen in training, as a PNG.

Usage: .venv/bin/python scripts/plot_curve.py WORKDIR docs/learning_curve.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def main(workdir: str, png: str) -> None:
    """Reads WORKDIR/model/curve.jsonl and the baselines in WORKDIR/evaluation.json."""
    lines = (Path(workdir) / "model" / "curve.jsonl").read_text("utf-8").splitlines()
    points = [json.loads(line) for line in lines]
    evaluation = json.loads((Path(workdir) / "evaluation.json").read_text("utf-8"))
    metrics = evaluation["metrics"]

    figure, axes = plt.subplots(figsize=(7, 4), dpi=120, layout="constrained")
    axes.plot(
        [point["pairs"] / 1000 for point in points],
        [point["link_accuracy"] for point in points],
        marker="o",
        color="#3b6fb6",
        label="dev mentions during training",
    )
    levels = [
        (f"all {metrics['split']} mentions", metrics["link_accuracy"], "#2e8b57", "-"),
        ("first candidate", metrics["baselines"]["first_candidate"], "#777777", "--"),
        ("random", metrics["baselines"]["random"], "#aaaaaa", ":"),
    ]
    for name, level, color, style in levels:
        label = f"{name}: {100 * level:.1f} %"
        axes.axhline(level, color=color, linestyle=style, label=label)
    axes.set_xlabel("pairs seen in training (thousands)")
    axes.set_ylabel("link accuracy")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(png)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
