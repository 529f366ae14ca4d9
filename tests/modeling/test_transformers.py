"""Hidden states against transformers' own, and PyTorch's files read by PyTorch."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_export.modeling import weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.encoder import BertEncoder
from tests import environments, torch_environment

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TOLERANCE = 1e-5
EVERY_KIND = ("safetensors", "safetensors_sharded", "bin", "bin_sharded", "old_bin")
# The kinds of files of each variant.
EXPECTED = {
    "bert": (*EVERY_KIND, "half_bin"),
    "bert_without_pooler": ("safetensors",),
    "bert_pretraining": ("safetensors",),
    "bert_gelu_new": ("safetensors",),
    "bert_gelu_pytorch_tanh": ("safetensors",),
    "albert_v1": ("safetensors",),
    "albert_v2": EVERY_KIND,
    "albert_two_groups": ("safetensors",),
    "albert_inner_groups": ("safetensors",),
    "albert_wide_embeddings": ("safetensors",),
    "electra": EVERY_KIND,
    "electra_base": ("safetensors",),
    "distilbert": EVERY_KIND,
    "distilbert_masked_lm": ("safetensors",),
}
DIRECTORIES = [f"{name}-{kind}" for name, kinds in EXPECTED.items() for kind in kinds]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both programs have answered."""
    python = torch_environment.interpreter()
    root = tmp_path_factory.mktemp("with a blank")
    theirs = environments.run(python, "-I", HERE / "transformers_states.py", root)
    assert theirs.returncode == 0, theirs.stderr[-3000:]
    versions = [torch_environment.TORCH, torch_environment.TRANSFORMERS]
    found = json.loads((root / "versions.json").read_text())
    assert [version.partition("+")[0] for version in found] == versions
    ours = environments.run(
        sys.executable,
        HERE / "our_states.py",
        torch_environment.site_packages(python),
        root,
        path=ROOT,
    )
    assert ours.returncode == 0, ours.stderr[-3000:]
    assert {path.parent.name for path in root.glob("*/ours.npz")} == set(DIRECTORIES)
    return root


def real(inputs: np.lib.npyio.NpzFile) -> np.ndarray:
    return inputs["attention_mask"] != 0


@pytest.mark.slow
@pytest.mark.parametrize("name", DIRECTORIES)
def test_hidden_states_equal_transformers(root: Path, name: str):
    expected = np.load(root / name / "expected.npz")
    ours = np.load(root / name / "ours.npz")
    tokens = real(expected)
    assert 0 < tokens.sum() < tokens.size
    # Tokens that answer alike would prove nothing.
    assert expected["states"][tokens].std(axis=0).min() > 0.01
    for layout in ("packed", "padded"):
        np.testing.assert_allclose(
            ours[layout][tokens],
            expected["states"][tokens],
            atol=TOLERANCE,
            rtol=0,
            err_msg=layout,
        )


@pytest.mark.slow
def test_heads_are_reported_as_unused(root: Path):
    def unused(name: str) -> set[str]:
        return set(np.load(root / name / "ours.npz")["unused"].tolist())

    pooler = {"bert/pooler/dense/bias", "bert/pooler/dense/kernel"}
    assert unused("bert-bin") == pooler
    assert unused("bert_without_pooler-safetensors") == set()
    assert "cls.seq_relationship.bias" in unused("bert_pretraining-safetensors")
    assert "predictions.dense.weight" in unused("albert_v2-safetensors")
    assert "discriminator_predictions.dense.weight" in unused("electra-safetensors")
    assert "vocab_transform.weight" in unused("distilbert_masked_lm-safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bert-safetensors", {"hidden_act": "gelu_new"}),
        ("albert_v2-safetensors", {"hidden_act": "gelu"}),
        ("albert_two_groups-safetensors", {"num_hidden_layers": 4}),
        ("electra-safetensors", {"num_attention_heads": 2}),
    ],
)
def test_the_comparison_notices_another_config(
    root: Path, tmp_path: Path, name: str, change: dict[str, object]
):
    expected = np.load(root / name / "expected.npz")
    config = BertConfig.from_json(root / name / "config.json")
    encoder = BertEncoder(dataclasses.replace(config, **change))
    prefix = weights.prepare_checkpoint(str(root / name), tmp_path)
    weights.initialize(prefix, encoder.variables)
    tokens = real(expected)
    reads = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    states = encoder(
        expected["input_ids"],
        expected["attention_mask"],
        expected["token_type_ids"],
        reads,
    )
    difference = np.abs(states - expected["states"])[tokens].max()
    assert difference > 20 * TOLERANCE


@pytest.mark.slow
def test_pytorch_files_without_running_them(tmp_path: Path):
    python = torch_environment.interpreter()
    process = environments.run(python, HERE / "pytorch_bins.py", tmp_path, path=ROOT)
    assert process.returncode == 0, process.stderr[-3000:]
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert not (tmp_path / "executed").exists()

    good = {"bert.a.weight": [[2, 3], "float32", 15], "bert.half": [[4], "float32", 4]}
    assert outcomes.pop("good.bin") == good
    assert outcomes.pop("old.bin") == good
    assert outcomes.pop("parameters.bin") == {"a": [[2], "float32", 2]}
    for name, message in {
        "malicious.bin": "refused, it asks for posix.system, and a file of weights",
        "old_malicious.bin": "refused, it asks for posix.system",
        "pickle.bin": "refused, it asks for posix.system",
        "unknown.bin": "refused, it asks for __main__.Unknown",
        "nested.bin": "found entries state_dict (dict), epoch (int)",
        "list.bin": "expected tensors by name (a state_dict), found a list",
        "good_half.bin": "the file may be incomplete: PytorchStreamReader failed",
        "good_short.bin": "the file may be incomplete: PytorchStreamReader failed",
        "old_half.bin": "cannot read the weights, the file",
        "old_short.bin": "cannot read the weights, the file",
        "empty.bin": "the file may be incomplete",
        "text.bin": "holds something else than tensors",
        "missing.bin": "No such file",
    }.items():
        outcome = outcomes.pop(name)
        assert outcome.startswith(f"{tmp_path / name}: "), outcome
        assert message in outcome
        assert "\n" not in outcome
    assert not outcomes
