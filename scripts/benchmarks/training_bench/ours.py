"""Trains with bert_export's Estimator, in turns; started by measure.py.

Usage: python ours.py JOB, which is JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import work
from turns import Turns


def run(job: dict[str, Any], turns: Turns) -> None:
    """Trains as `bert-export train` does, then scores the test mentions.

    Args:
      job: `work`, `precision`, `num_train_steps`.
      turns: says when to go on.
    """
    import tensorflow as tf

    from bert_export.config import read_json, resolve
    from bert_export.features.records import RecordSet
    from bert_export.features.spec import FeatureSpec
    from bert_export.modeling.bert_config import BertConfig
    from bert_export.training.estimator import create_estimator
    from bert_export.training.input_fn import ordered_input_fn, train_input_fn
    from bert_export.training.model_fn import SCORE, ModelParams

    class TurnsHook(tf.estimator.SessionRunHook):
        def after_run(self, run_context, run_values):
            if not turns.step_done():
                run_context.request_stop()

    about = work.about(job["work"])
    config = resolve(read_json(Path(job["work"]) / work.CONFIG))
    config = dataclasses.replace(
        config,
        # The other libraries save nothing meanwhile, either.
        train=dataclasses.replace(config.train, save_checkpoints_steps=1_000_000),
    )
    spec = FeatureSpec.from_config(config.features)
    params = ModelParams(
        spec,
        BertConfig.from_json(about["bert_config"]),
        config.train,
        job["num_train_steps"],
        about["checkpoint"],
    )
    train_records, test_records = (
        RecordSet.load(about["records"], split) for split in ("train", "test")
    )
    with tempfile.TemporaryDirectory() as model_dir:
        estimator = create_estimator(
            config, params, Path(model_dir), job["precision"] == "bfloat16"
        )
        input_fn = train_input_fn(
            train_records,
            spec,
            config.train.mentions_per_batch,
            config.train.shuffle_mentions,
            config.train.seed,
            first_step=0,
        )
        if turns.wait():
            estimator.train(input_fn, hooks=[TurnsHook()])
        test_input_fn = ordered_input_fn(
            test_records, spec, config.eval.mentions_per_batch, about["test_mentions"]
        )
        # In float32 whatever it was trained in, as everywhere else.
        predictions = create_estimator(config, params, Path(model_dir)).predict(
            test_input_fn
        )
        turns.answer([float(prediction[SCORE]) for prediction in predictions])
        turns.wait()


if __name__ == "__main__":
    JOB = json.loads(sys.argv[1])
    TURNS = Turns(JOB["log"])
    with TURNS.failures():
        run(JOB, TURNS)
