"""Our hidden states for what `transformers_states.py` wrote; run with torch at hand.

    python our_states.py SITE_PACKAGES DIRECTORY

SITE_PACKAGES has torch; this interpreter's own packages go first. Each Hugging Face
directory gets `ours.npz`: the last hidden states, padding-free and padded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from bert_export.modeling import weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.encoder import BertEncoder


def main(root: Path) -> None:
    for directory in sorted(path.parent for path in root.glob("*/expected.npz")):
        config_path = directory / "config.json"
        config = BertConfig.from_json(config_path)
        weights.check_pretrained(str(directory), config, config_path)
        prefix = weights.prepare_checkpoint(str(directory), directory)
        encoder = BertEncoder(config)
        report = weights.initialize(prefix, encoder.variables)
        inputs = np.load(directory / "expected.npz")
        mask = inputs["attention_mask"]
        reads = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
        arguments = inputs["input_ids"], mask, inputs["token_type_ids"], reads
        np.savez(
            directory / "ours.npz",
            packed=encoder(*arguments),
            padded=encoder(*arguments, padded=True),
            unused=np.array(report.unused),
        )


if __name__ == "__main__":
    sys.path.append(sys.argv[1])
    main(Path(sys.argv[2]))
