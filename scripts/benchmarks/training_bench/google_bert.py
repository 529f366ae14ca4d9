"""Trains with google-research BERT's run_classifier, in turns; started by measure.py.

Usage: python google_bert.py JOB, which is JSON. Runs in Python 3.7 with TensorFlow 1.15
and bert-tensorflow.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

import numpy as np
import work
from turns import Turns

# Pairs scored at a time after training.
SCORED = 32


def run(job: dict[str, Any], turns: Turns) -> None:
    """Trains as run_classifier does, then scores the test mentions.

    Args:
      job: `work`, `num_train_steps`, `threads`.
      turns: says when to go on.
    """
    # TensorFlow 2 sets it for all processes that it starts.
    os.environ["TF2_BEHAVIOR"] = "0"
    import tensorflow as tf
    from bert import modeling, run_classifier

    class TurnsHook(tf.estimator.SessionRunHook):
        def after_run(self, run_context, run_values):
            if not turns.step_done():
                run_context.request_stop()

    about = work.about(job["work"])
    length = about["max_seq_length"]
    steps = job["num_train_steps"]
    tpu = tf.contrib.tpu
    with tempfile.TemporaryDirectory() as directory:
        estimator = tpu.TPUEstimator(
            use_tpu=False,
            model_fn=run_classifier.model_fn_builder(
                bert_config=modeling.BertConfig.from_json_file(about["bert_config"]),
                num_labels=2,
                init_checkpoint=about["checkpoint"],
                learning_rate=about["learning_rate"],
                num_train_steps=steps,
                num_warmup_steps=round(about["warmup_fraction"] * steps),
                use_tpu=False,
                use_one_hot_embeddings=False,
            ),
            config=tpu.RunConfig(
                model_dir=os.path.join(directory, "model"),
                tf_random_seed=about["seed"],
                # The other libraries save nothing meanwhile, either.
                save_checkpoints_steps=1000000,
                session_config=tf.ConfigProto(
                    intra_op_parallelism_threads=job["threads"],
                    inter_op_parallelism_threads=job["threads"],
                ),
            ),
            train_batch_size=about["pairs_a_step"],
            predict_batch_size=SCORED,
        )
        files = {}
        for split, most in (("train", about["train_pairs"]), ("test", None)):
            pairs, labels = work.pairs(job["work"], split)
            files[split] = os.path.join(directory, split)
            _write(files[split], pairs[:most], labels[:most], length)

        def input_fn(split: str) -> Any:
            training = split == "train"
            return run_classifier.file_based_input_fn_builder(
                files[split], length, is_training=training, drop_remainder=training
            )

        if turns.wait():
            estimator.train(input_fn("train"), hooks=[TurnsHook()])
        probabilities = [
            prediction["probabilities"]
            for prediction in estimator.predict(input_fn("test"))
        ]
        # Float64, in which pairs of nearly the same probability stay apart.
        odds = np.log(np.array(probabilities, np.float64))  # [pairs, 2]
        turns.answer((odds[:, 1] - odds[:, 0]).tolist())
        turns.wait()


def _write(file: str, pairs: Any, labels: list[int], length: int) -> None:
    """Writes the TFRecord that run_classifier makes of texts."""
    import tensorflow as tf

    def ints(values: list[int]) -> Any:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    with tf.python_io.TFRecordWriter(file) as writer:
        for pair, label in zip(pairs, labels):
            ids, types = pair["input_ids"], pair["token_type_ids"]
            padding = [0] * (length - len(ids))
            features = {
                "input_ids": ints(ids + padding),
                "input_mask": ints([1] * len(ids) + padding),
                "segment_ids": ints(types + padding),
                "label_ids": ints([label]),
                "is_real_example": ints([1]),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


if __name__ == "__main__":
    JOB = json.loads(sys.argv[1])
    TURNS = Turns(JOB["log"])
    with TURNS.failures():
        run(JOB, TURNS)
