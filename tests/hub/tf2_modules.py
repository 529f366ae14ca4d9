"""Writes TensorFlow 2 hub modules of encoders with tf-models-official's exporter.

    python tf2_modules.py SITE_PACKAGES VOCAB DIRECTORY

SITE_PACKAGES has tf-models-official. For each encoder a directory is written, with
`module/` and `expected.npz`: inputs [batch, seq_length] and the encoder's own hidden
states. Knows nothing of ours.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
}


def encoders() -> dict[str, tuple[dict[str, Any], bool]]:
    """By name, the exporter's arguments and whether the masked language model goes."""
    from official.legacy.bert import configs
    from official.nlp.configs import encoders as kinds

    legacy = configs.BertConfig(**SIZES, num_hidden_layers=3, embedding_size=None)
    bert = kinds.EncoderConfig(
        type="bert", bert=kinds.BertEncoderConfig(**SIZES, num_layers=2)
    )
    albert = kinds.EncoderConfig(
        type="albert",
        albert=kinds.AlbertEncoderConfig(**SIZES, num_layers=3, embedding_width=8),
    )
    return {
        "legacy": ({"bert_config": legacy}, False),
        "bert": ({"encoder_config": bert}, False),
        "bert_with_mlm": ({"encoder_config": bert}, True),
        "albert": ({"encoder_config": albert}, False),
    }


def main(vocab: str, directory: Path) -> None:
    from official.nlp.tools import export_tfhub_lib as exporter

    rng = np.random.default_rng(1)
    mask = (np.arange(9) < np.array([[9], [4], [1]])).astype(np.int32)
    inputs = {
        "input_word_ids": rng.integers(64, size=mask.shape, dtype=np.int32),
        "input_mask": mask,
        "input_type_ids": rng.integers(2, size=mask.shape, dtype=np.int32),
    }
    for name, (options, with_mlm) in encoders().items():
        model, trained = exporter._create_model(**options, with_mlm=with_mlm)
        for variable in trained.variables:
            # Larger than usual: what is wrong shows.
            noise = rng.normal(0, 0.3, variable.shape)
            variable.assign(variable + noise.astype(np.float32))
        target = directory / name
        target.mkdir()
        items = trained.checkpoint_items if with_mlm else {"encoder": trained}
        checkpoint = tf.train.Checkpoint(**items).save(str(target / "checkpoint"))
        tensors = {key: tf.constant(value) for key, value in inputs.items()}
        states = model(tensors)["sequence_output"].numpy()
        np.savez(target / "expected.npz", **inputs, states=states)
        exporter.export_model(
            str(target / "module"),
            **options,
            model_checkpoint_path=checkpoint,
            with_mlm=with_mlm,
            vocab_file=vocab,
            do_lower_case=name != "legacy",
        )


if __name__ == "__main__":
    # Behind this interpreter's own packages.
    sys.path.append(sys.argv[1])
    main(sys.argv[2], Path(sys.argv[3]))
