"""A worker with google-research's BERT, in TensorFlow 1.15 and Python 3.7.

`google_bert.py export DIRECTORY` writes its SavedModel into DIRECTORY/saved_model.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

import numpy as np
import tensorflow as tf
from absl import flags
from answering import main
from arrays import padded
from bert import modeling, run_classifier, tokenization

MAX_LENGTH = 128
BATCH = 32
NAMES = ("input_ids", "input_mask", "segment_ids")


def load(contender, directory):
    """By measure, how a request is prepared and answered."""
    if contender == "google_estimator":
        answer = _estimator_answers(_estimator(directory), _checkpoint(directory))
    else:
        predictor = tf.contrib.predictor.from_saved_model(
            os.path.join(directory, "saved_model"), config=_session_config()
        )

        def answer(features):
            return _scores(predictor(features)["probabilities"])

    tokenizer = tokenization.FullTokenizer(
        os.path.join(directory, "vocab.txt"), do_lower_case=True
    )

    def answer_text(pairs):
        rows = [
            run_classifier.convert_single_example(
                0,
                run_classifier.InputExample("", *pair, label="0"),
                ["0", "1"],
                MAX_LENGTH,
                tokenizer,
            )
            for pair in pairs
        ]
        return answer(
            {name: np.array([getattr(row, name) for row in rows]) for name in NAMES}
        )

    # Its tokenizer asks for an option of the command line.
    flags.FLAGS.mark_as_parsed()
    # convert_single_example tells of its first examples.
    tf.logging.set_verbosity(tf.logging.ERROR)
    return {
        "text": (
            lambda request: list(zip(request["marked"], request["candidates"])),
            answer_text,
        ),
        "ids": (
            lambda request: dict(zip(NAMES, padded(request, MAX_LENGTH, np.int32))),
            answer,
        ),
    }


def _checkpoint(directory):
    return os.path.join(directory, "bert_model.ckpt")


def _session_config():
    threads = int(os.environ["OMP_NUM_THREADS"])
    return tf.ConfigProto(intra_op_parallelism_threads=threads)


def _estimator(directory):
    """The classifier of run_classifier.py."""
    model_fn = run_classifier.model_fn_builder(
        bert_config=modeling.BertConfig.from_json_file(
            os.path.join(directory, "bert_config.json")
        ),
        num_labels=2,
        init_checkpoint=None,
        learning_rate=1.0,
        num_train_steps=1,
        num_warmup_steps=1,
        use_tpu=False,
        use_one_hot_embeddings=False,
    )
    return tf.estimator.tpu.TPUEstimator(
        use_tpu=False,
        model_fn=model_fn,
        config=tf.estimator.tpu.RunConfig(
            model_dir=tempfile.mkdtemp(), session_config=_session_config()
        ),
        train_batch_size=BATCH,
        predict_batch_size=BATCH,
        export_to_tpu=False,
    )


def _estimator_answers(estimator, checkpoint):
    def answer(features):
        def input_fn(params):
            del params
            labels = np.zeros(len(features["input_ids"]), np.int32)
            return tf.data.Dataset.from_tensors(dict(features, label_ids=labels))

        rows = estimator.predict(input_fn, checkpoint_path=checkpoint)
        return _scores(np.array([row["probabilities"] for row in rows]))

    return answer


def _scores(probabilities):
    """[pairs] log odds of [pairs, 2]."""
    log = np.log(np.maximum(probabilities, 1e-30))
    return (log[:, 1] - log[:, 0]).tolist()


def export(directory):
    """Writes the SavedModel, which takes int32 [pairs, MAX_LENGTH]."""
    estimator = _estimator(directory)
    target = os.path.join(directory, "saved_model")
    # Of an interrupted run.
    shutil.rmtree(target, ignore_errors=True)

    def receiver():
        inputs = {
            name: tf.placeholder(tf.int32, [None, MAX_LENGTH], name) for name in NAMES
        }
        labels = tf.zeros_like(inputs["input_ids"][:, 0])
        return tf.estimator.export.ServingInputReceiver(
            dict(inputs, label_ids=labels), inputs
        )

    parent = tempfile.mkdtemp(dir=directory)
    exported = estimator.export_saved_model(
        parent, receiver, checkpoint_path=_checkpoint(directory)
    )
    os.rename(exported.decode(), target)
    os.rmdir(parent)


if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(sys.argv[2])
    else:
        main(load)
