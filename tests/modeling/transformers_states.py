"""Hidden states of transformers' models with random weights; run where torch is.

    python transformers_states.py DIRECTORY

For each variant a Hugging Face directory is written, and in it `expected.npz`: inputs
[batch, seq_length] and the last hidden states. Knows nothing of ours.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertModel,
    BertConfig,
    BertForPreTraining,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertModel,
    ElectraConfig,
    ElectraForPreTraining,
    ElectraModel,
)

SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    # Larger than usual: what is wrong shows.
    "initializer_range": 0.2,
}
DISTILBERT = {
    "vocab_size": 90,
    "dim": 32,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}


def models() -> dict[str, torch.nn.Module]:
    bert = BertConfig(**SIZES, num_hidden_layers=3)
    electra = ElectraConfig(**SIZES, num_hidden_layers=3, embedding_size=16)
    albert = AlbertConfig(**SIZES, num_hidden_layers=4, embedding_size=16)
    return {
        "bert": BertModel(bert),
        "bert_without_pooler": BertModel(bert, add_pooling_layer=False),
        "bert_pretraining": BertForPreTraining(bert),
        "bert_gelu_new": BertModel(
            BertConfig(**SIZES, num_hidden_layers=2, hidden_act="gelu_new")
        ),
        "bert_gelu_pytorch_tanh": BertModel(
            BertConfig(**SIZES, num_hidden_layers=2, hidden_act="gelu_pytorch_tanh")
        ),
        "albert_v1": AlbertModel(
            AlbertConfig(
                **SIZES, num_hidden_layers=4, embedding_size=16, hidden_act="gelu"
            )
        ),
        "albert_v2": AlbertForMaskedLM(albert),
        "albert_two_groups": AlbertModel(
            AlbertConfig(
                **SIZES, num_hidden_layers=5, embedding_size=16, num_hidden_groups=2
            )
        ),
        "albert_inner_groups": AlbertModel(
            AlbertConfig(
                **SIZES, num_hidden_layers=4, embedding_size=16, inner_group_num=2
            )
        ),
        "albert_wide_embeddings": AlbertModel(
            AlbertConfig(**SIZES, num_hidden_layers=2, embedding_size=32)
        ),
        "electra": ElectraForPreTraining(electra),
        "electra_base": ElectraModel(
            ElectraConfig(**SIZES, num_hidden_layers=3, embedding_size=32)
        ),
        "distilbert": DistilBertModel(DistilBertConfig(**DISTILBERT, n_layers=3)),
        "distilbert_masked_lm": DistilBertForMaskedLM(
            DistilBertConfig(**DISTILBERT, n_layers=2, sinusoidal_pos_embds=True)
        ),
    }


def randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Makes every parameter matter: none is 0 or 1 throughout."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    lengths = np.array([[3], [17], [40], [1], [9], [28]])
    ragged = np.arange(40) < lengths
    holes = rng.random([2, 40]) < 0.7
    holes[:, 0] = True
    mask = np.concatenate([ragged, holes]).astype(np.int64)
    return {
        "input_ids": rng.integers(0, 90, mask.shape),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, mask.shape),
    }


def states(model: torch.nn.Module, features: dict[str, np.ndarray]) -> np.ndarray:
    """The encoder's last hidden states [batch, seq_length, hidden]."""
    encoder = model.base_model.eval()
    tensors = {name: torch.from_numpy(value) for name, value in features.items()}
    if encoder.config.model_type == "distilbert":
        del tensors["token_type_ids"]
    with torch.no_grad():
        return encoder(**tensors).last_hidden_state.numpy()


def save(model: torch.nn.Module, directory: Path, kind: str) -> None:
    """As transformers writes safetensors, and as it wrote PyTorch's files."""
    if kind == "safetensors":
        model.save_pretrained(directory)
        return
    if kind == "safetensors_sharded":
        model.save_pretrained(directory, max_shard_size="20KB")
        assert not (directory / "model.safetensors").exists()
        return
    model.config.save_pretrained(directory)
    weights = model.state_dict()
    if kind in ("bin", "old_bin", "half_bin"):
        if kind == "half_bin":
            weights = {name: value.bfloat16() for name, value in weights.items()}
        torch.save(
            weights,
            directory / "pytorch_model.bin",
            _use_new_zipfile_serialization=kind != "old_bin",
        )
        return
    assert kind == "bin_sharded"
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, directory / file)
        index |= dict.fromkeys(part, file)
    (directory / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )


def main(root: Path) -> None:
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(11)
    features = inputs(np.random.default_rng(3))
    for name, model in models().items():
        randomize(model, generator)
        kinds = ["safetensors"]
        if name in ("bert", "albert_v2", "electra", "distilbert"):
            kinds += ["safetensors_sharded", "bin", "bin_sharded", "old_bin"]
        if name == "bert":
            kinds.append("half_bin")
        for kind in kinds:
            directory = root / f"{name}-{kind}"
            directory.mkdir(parents=True)
            if kind == "half_bin":
                model = model.bfloat16().float()
            save(model, directory, kind)
            expected = states(model, features)
            np.savez(directory / "expected.npz", **features, states=expected)
    (root / "versions.json").write_text(
        json.dumps([torch.__version__, transformers.__version__])
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
