"""The benchmark of scaling: its arithmetic, its workers on a tiny model, its report."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import image

from bert_export.features.records import RecordSet
from bert_export.modeling.bert_config import BertConfig

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "benchmarks" / "scaling_bench"
SCRIPT = BENCH / "measure.py"
BERT = BertConfig(
    vocab_size=100,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
)


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The benchmark's modules, which are siblings of each other, not a package."""
    places = [str(BENCH), str(BENCH.parent)]
    others = dict(sys.modules)
    sys.path[:0] = places
    yield
    for place in places:
        sys.path.remove(place)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name not in others and file.startswith(str(BENCH.parent)):
            del sys.modules[name]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Not scripts/benchmarks/scaling, which would set up a .venv.
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def product(rows, inner, columns):
    return 2 * rows * inner * columns


def test_operations_are_those_of_the_products():
    from arithmetic import forward, step

    lengths, reads = [5, 3], 2
    needed = forward(BERT, lengths, reads)
    # One whole layer on 8 tokens, and one of which 2 positions a pair are read.
    weights = 4 * product(8, 32, 32) + product(8, 32, 64) + product(8, 64, 32)
    weights += 2 * product(8, 32, 32)
    weights += 2 * product(4, 32, 32) + product(4, 32, 64) + product(4, 64, 32)
    weights += product(4 // 2, 2 * 32, 2)
    assert needed.weights == weights
    # Two heads of 16.
    attention = sum(2 * 2 * product(length, 16, length) for length in lengths)
    attention += sum(2 * 2 * product(2, 16, length) for length in lengths)
    assert needed.attention == attention
    once = step(BERT, lengths, reads)
    assert (once.weights, once.attention) == (3 * weights, 3 * attention)


def test_attention_is_float32_where_weights_are_int8():
    from arithmetic import Operations

    needed = Operations(weights=600, attention=40)
    peak = {"float32": 10.0, "int8": 30.0}
    assert needed.total == 640
    assert needed.seconds(peak, "float32") == 64
    assert needed.seconds(peak, "int8") == 600 / 30 + 40 / 10


def test_points_and_profiles_come_from_real_runs(tmp_path):
    import make_models
    import measure
    import names

    models = tmp_path / "with a blank"
    make_models.write_models(BERT, models / "2")
    peak = {"float32": 1e9, "int8": 2e9, "bfloat16": 1e9}
    bench = measure.Bench(models, 1, peak)
    kinds = {names.ONNX_INT8: "int8", names.TRAINING: "float32"}
    try:
        bench.start(kinds)
        bench.load(2)
        points = bench.time("generated", [[16] * 3], 0)
        mixed = bench.time("mentions", [[5, 9], [4, 7, 8, 5]], 0)
        profiles = bench.profile([[16] * 3])
    finally:
        bench.close()
    assert [point["kind"] for point in points] == list(kinds)
    serving, training = points
    needed = measure.forward(BERT, [16] * 3, 3)
    assert serving["flops"] == needed.total
    assert training["flops"] == 3 * needed.total
    assert serving["bound_ms"] == pytest.approx(
        needed.weights / 2e6 + needed.attention / 1e6
    )
    for point in (*points, *mixed):
        ms = point["ms"]
        assert 0 < ms["q1"] <= ms["median"] <= ms["q3"]
        assert ms["runs"] >= 2
        assert point["share"] == point["bound_ms"] / ms["median"]
        assert point["pairs_a_second"] == 1000 * point["batch"] / ms["median"]
    assert (mixed[0]["batch"], mixed[0]["length"]) == (3, 38 / 6)
    integer = [
        found["count"]
        for name, found in profiles[names.ONNX_INT8].items()
        if "Integer" in name
    ]
    # Of two layers; every kernel is counted in one run.
    assert sum(integer) >= 8
    batched = profiles[names.TRAINING]["_MklBatchMatMulV2"]
    # Queries by keys and probabilities by values in each layer, with their gradients,
    # and each half of the batch for itself.
    assert batched["count"] == 2 * 2 * 3 * 2
    assert batched["ms"] > 0


def test_generated_mentions_are_prepared_by_the_command(tmp_path):
    import linear

    words = ["alpha", "beta", "gamma"]
    linear.generate(tmp_path / "corpus", 200, words, "mentions")
    entities, mentions = (
        tmp_path / "corpus" / f"{name}.jsonl" for name in ("entities", "mentions")
    )
    read = [json.loads(line) for line in mentions.read_text().splitlines()]
    assert len(read) == 20
    assert len({mention["text"] for mention in read}) == 20
    for mention in read:
        assert mention["text"][mention["start"] : mention["end"]] in words
        assert mention["gold"] in mention["candidates"]
    found = linear.run(
        "prepare",
        "sample",
        tmp_path / "work dir",
        f"--config.corpus.entities={entities}",
        f"--config.corpus.mentions={mentions}",
    )
    records = [
        RecordSet.load(tmp_path / "work dir" / "records", split)
        for split in ("train", "dev", "test")
    ]
    assert sum(split.num_records for split in records) == 200
    assert found["seconds"] > 0
    assert found["peak_bytes"] > 1e7
    with pytest.raises(RuntimeError, match=r"prepare failed: .*nowhere"):
        linear.run("prepare", "nowhere", tmp_path / "2")


def test_a_further_pair_is_counted_without_the_start():
    from linear import beyond_first

    rows = [{"pairs": 100, "seconds": 5.0}, {"pairs": 1100, "seconds": 5.5}]
    assert beyond_first(rows)[1]["seconds_a_pair"] == 0.5 / 1000
    assert "seconds_a_pair" not in rows[0]


def measured():
    """Numbers as measure.py makes them, but made up."""
    import measure
    import names

    def point(kind, work, threads, layers, batch, length, ms):
        return {
            "kind": kind,
            "work": work,
            "threads": threads,
            "layers": layers,
            "batch": batch,
            "length": length,
            "first_ms": 2 * ms,
            "ms": {"runs": 3, "q1": ms, "median": ms, "q3": ms},
            "pairs_a_second": 1000 * batch / ms,
            "flops": 10**9,
            "bound_ms": ms / 2,
            "share": 0.5,
        }

    points = [
        point(kind, "generated", threads, *shape, 10.0 * place)
        for threads in (1, 2)
        for kinds, shapes in (
            (measure.SERVING, measure.shapes((2, 6), 8192)),
            (measure.TRAINING, measure.training_shapes(8192)),
        )
        for kind in kinds
        for place, shape in enumerate(shapes, start=1)
    ]
    points += [
        point(kind, "batches", 2, 6, 32, 24.5, 30.0)
        for kind in (*measure.SERVING, *measure.TRAINING)
    ]
    rates = {"float32": {"tensorflow": 2e11}, "int8": {"onnxruntime": 8e11}}
    found = {
        "date": "2026-11-23",
        "machine": {
            "cpu": "some CPU",
            "features": ["avx2"],
            "cores": 2,
            "system": "Linux",
            "python": "3.11.7",
        },
        "versions": {"tensorflow": "2.15.1"},
        "threads": [1, 2],
        "model": {
            "bert": dataclasses.asdict(dataclasses.replace(BERT, num_hidden_layers=6)),
            "reads": 3,
        },
        "corpus": "sample",
        "peak": {"1": rates, "2": rates},
        "points": points,
        "profiles": {
            names.ONNX: {
                f"Op{n}": {"ms": 100.0 / 2**n, "count": 1.0} for n in range(12)
            }
        },
        "xla": [
            {"xla": False, **point(names.TRAINING, "batches", 2, 6, 32, 24.5, 70.0)},
            {
                "xla": True,
                "kind": names.TRAINING,
                "work": "batches",
                "error": "not possible",
            },
        ],
        "linear": {
            "prepare": [
                {"pairs": 1000, "seconds": 3.0, "peak_bytes": 7e8},
                {
                    "pairs": 1000000,
                    "seconds": 23.0,
                    "peak_bytes": 8e8,
                    "seconds_a_pair": 2e-5,
                },
            ],
            "evaluate": [{"pairs": 1000, "seconds": 3.0, "peak_bytes": 7e8}],
        },
        "seconds": {"models": 60.0, "all": 480.0},
    }
    return {**found, "goals": measure.find_goals(found)}


def test_the_report_is_made_from_the_json(tmp_path):
    numbers = tmp_path / "numbers.json"
    numbers.write_text(json.dumps(measured()), encoding="utf-8")
    output = tmp_path / "with a blank"
    result = run(f"--report={numbers}", f"--output={output}")
    assert result.returncode == 0, result.stderr
    written = output / "benchmarks" / "scaling.json"
    assert json.loads(written.read_text("utf-8")) == measured()
    page = (output / "benchmarks.md").read_text("utf-8")
    sections = dict(
        re.findall(r"<!-- measured: (scaling_\w+) -->\n(.*?)<!-- end -->", page, re.S)
    )
    assert len(sections) == 8
    assert all(text.strip() for text in sections.values())
    assert "200" in sections["scaling_peak"]
    goals = sections["scaling_goals"]
    assert re.search(r"ONNX int8_dynamic .* 50 % .* 70 %: not reached", goals)
    assert re.search(r"`prepare` .* 50,000 .* 40,000: reached", goals)
    assert "30.0 ms, 1,067/s, 50 %" in sections["scaling_bound"]
    assert "real lengths, 24.5 on average" in sections["scaling_training"]
    assert "2 others" in sections["scaling_profile"]
    assert "Refused: not possible" in sections["scaling_xla"]
    assert "20.0" in sections["scaling_linear"]
    docs = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    own_text = r"(<!-- measured: scaling_\w+ -->\n).*?(<!-- end -->)"
    emptied = [re.sub(own_text, r"\1\2", text, flags=re.S) for text in (page, docs)]
    assert emptied[0] == emptied[1]
    pixels = image.imread(output / "benchmarks" / "scaling.png")
    assert pixels[0, 0, 3] == 0
    drawn = pixels[pixels[:, :, 3] > 0.9][:, :3]
    assert len(drawn) > 10_000
    # Neither black nor white, which would vanish on one of the two.
    assert drawn.mean(axis=1).min() > 0.2
    assert drawn.mean(axis=1).max() < 0.8


def test_bad_options_are_one_line(tmp_path):
    result = run("--threads=0", f"--output={tmp_path}")
    assert result.returncode == 2
    assert result.stderr.strip() == "--threads: expected more than 0"
