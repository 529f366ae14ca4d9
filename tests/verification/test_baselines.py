"""The baselines, measured on the tiny linker."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_export.verification import baselines, prove
from tests.verification import tiny_formats


@pytest.mark.slow
def test_baselines():
    held_out = tiny_formats.held_out()
    estimator, padded = baselines.measure(tiny_formats.model(), held_out, seconds=0.1)
    read = prove.read_held_out(held_out.path)
    accuracy = prove.link_accuracy(read, read.score)
    checkpoint = Path(tiny_formats.model().checkpoint)
    for row in (estimator, padded):
        assert row["verdict"] == "baseline"
        figures = row["figures"]
        assert figures["link_accuracy"] == accuracy
        assert figures["accuracy_drop"] == figures["top1_changed"] == 0
        assert list(figures["latency"]) == ["example", "mention", "batch_32"]
        assert 0 < figures["rss_bytes"] <= figures["peak_bytes"]
        # TensorFlow alone takes longer than this.
        assert figures["cold_start_seconds"] > 0.5
    assert estimator["figures"]["bytes"] == sum(
        path.stat().st_size
        for path in checkpoint.parent.glob(f"{checkpoint.name}.*")
        if path.suffix != ".meta"
    )
    # A graph built and weights restored in every call.
    assert estimator["figures"]["latency"]["mention"]["runs"] == 3
    assert (
        estimator["figures"]["latency"]["mention"]["median_ms"]
        > 5 * padded["figures"]["latency"]["mention"]["median_ms"]
    )
    assert padded["figures"]["max_difference"] < 1e-5
    assert padded["figures"]["latency"]["mention"]["runs"] >= 20
