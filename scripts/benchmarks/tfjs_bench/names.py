"""Names of what make_models.py writes and measure.py reads; loads no TensorFlow."""

from __future__ import annotations

# A model's directory has one of each, and its inputs.
LAYERS, GRAPH = KINDS = ("layers", "graph")
INPUTS = "inputs.json"
# The directory of the linker as bert-export writes it, with the same graph for Python.
EXPORTED = "exported"
FROZEN = "frozen.pb"
SAVED = "saved_model"
# What is known of all models.
MODELS_FILE = "models.json"
