"""Names and sizes that the modules of the benchmark share."""

from __future__ import annotations

# In configs/, for corpora and vocabularies.
CONFIG = "benchmark"
QUICK_CONFIG = "sample"
# In the directory of the models.
LENGTHS = "lengths.json"
WORDS = "words.json"
SMALL = "small"
# In a directory for each number of layers.
MODEL = "model.json"
ONNX = "onnx"
ONNX_INT8 = "onnx_int8_dynamic"
SAVED_MODEL = "serving_model"
# A training step needs no model but its config's.
TRAINING = "training"
TRAINING_BFLOAT16 = "training_bfloat16"

# Pairs where the length varies, and tokens of each where batch or layers vary.
FEW_PAIRS = 8
MANY_PAIRS = 32
TYPICAL_LENGTH = 32
