"""The learning curve's plot, made from files of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from matplotlib import image

SCRIPT = Path(__file__).parents[2] / "scripts" / "plot_curve.py"


def plot(workdir: Path, png: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(workdir), str(png)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_curve_is_drawn_where_its_points_are(tmp_path):
    def drawn(accuracies: list[float]) -> float:
        """The mean row, from the top, of the pixels in the curve's blue."""
        points = [
            {"step": n, "pairs": n * 1000, "loss": 1.0, "link_accuracy": accuracy}
            for n, accuracy in enumerate(accuracies)
        ]
        (tmp_path / "model").mkdir(exist_ok=True)
        curve = "".join(json.dumps(point) + "\n" for point in points)
        (tmp_path / "model" / "curve.jsonl").write_text(curve)
        baselines = {"first_candidate": 0.3, "random": 0.1}
        metrics = {"split": "test", "link_accuracy": 0.9, "baselines": baselines}
        (tmp_path / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
        result = plot(tmp_path, tmp_path / "curve.png")
        assert result.returncode == 0, result.stderr
        pixels = image.imread(tmp_path / "curve.png")[:, :, :3]
        blue = abs(pixels - [0x3B / 255, 0x6F / 255, 0xB6 / 255]).max(axis=2) < 0.02
        # The legend in the lower right has the colour, too.
        rows, _ = blue[:, : blue.shape[1] // 3].nonzero()
        return rows.mean()

    assert drawn([0.8, 0.8, 0.8]) < drawn([0.2, 0.2, 0.2]) - 50


def test_wrong_usage_says_how_to_call_it():
    result = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "Usage:" in result.stderr
