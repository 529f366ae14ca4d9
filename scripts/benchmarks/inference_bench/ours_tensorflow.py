"""A worker with bert_export's artifacts for TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from answering import main
from arrays import padded


def load(contender: str, directory: str) -> dict[str, Any]:
    """By measure, how a request is prepared and answered."""
    if contender == "estimator":
        return {"ids": (_arrays, _estimator(Path(directory)))}
    import tensorflow as tf

    if contender.endswith("bfloat16"):
        tf.config.optimizer.set_experimental_options(
            {"auto_mixed_precision_onednn_bfloat16": True}
        )
    if contender == "serving_model":
        # Its operations are in the graph.
        import tensorflow_text  # noqa: F401
    model = tf.saved_model.load(directory)
    tensors = model.signatures["tensors"]

    def answer_ids(arrays: dict[str, np.ndarray]) -> np.ndarray:
        inputs = {name: tf.constant(array) for name, array in arrays.items()}
        return tensors(**inputs)["score"].numpy()

    ways: dict[str, Any] = {"ids": (_arrays, answer_ids)}
    if "text" in model.signatures:
        text, link = model.signatures["text"], model.signatures["link"]

        def answer_text(request: dict[str, Any]) -> np.ndarray:
            # One mention with its candidates, or pairs of any mentions.
            if "mention" in request:
                given, start, end = request["mention"]
                return link(
                    text=tf.constant(given),
                    mention_start=tf.constant(start, tf.int64),
                    mention_end=tf.constant(end, tf.int64),
                    candidates=tf.constant(request["candidates"]),
                )["score"].numpy()
            return text(
                text=tf.constant(request["texts"]),
                mention_start=tf.constant(request["starts"], tf.int64),
                mention_end=tf.constant(request["ends"], tf.int64),
                candidate=tf.constant(request["candidates"]),
            )["score"].numpy()

        ways["text"] = (lambda request: request, answer_text)
    return ways


def _arrays(request: dict[str, Any]) -> dict[str, np.ndarray]:
    """int64 [pairs, longest] by feature name."""
    return dict(zip(("input_ids", "input_mask", "segment_ids"), padded(request)))


def _estimator(directory: Path) -> Any:
    """estimator.predict with the checkpoint that DIRECTORY/estimator.json names."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    import tempfile

    import tensorflow as tf

    from bert_export.config import Config, FeaturesConfig, read_json
    from bert_export.features.spec import FeatureSpec
    from bert_export.modeling.bert_config import BertConfig
    from bert_export.training.estimator import create_estimator
    from bert_export.training.model_fn import ModelParams

    described = read_json(directory / "estimator.json")
    # JSON has lists for tuples.
    features = FeaturesConfig(
        **{
            key: tuple(value) if isinstance(value, list) else value
            for key, value in described["features"].items()
        }
    )
    config = Config(features=features)
    params = ModelParams(
        FeatureSpec.from_config(features),
        BertConfig(**described["bert"]),
        config.train,
        num_train_steps=1,
        pretrained=None,
    )
    model_dir = tempfile.TemporaryDirectory()
    estimator = create_estimator(config, params, Path(model_dir.name))

    def answer(
        arrays: dict[str, np.ndarray], model_dir: Any = model_dir
    ) -> list[float]:
        # The directory is held: it ends with its last user.
        predictions = estimator.predict(
            lambda: tf.data.Dataset.from_tensors(arrays),
            checkpoint_path=described["checkpoint"],
        )
        return [prediction["score"] for prediction in predictions]

    return answer


if __name__ == "__main__":
    main(load)
