"""Loads what the huggingface format wrote; run where torch is.

    python load_in_transformers.py DIRECTORY

DIRECTORY has a directory for each variant: `a directory/`, what was written;
`requests.npz` and `texts.json`. Knows nothing of ours but the names of the features.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer


def main(root: Path) -> None:
    for directory in sorted(path.parent for path in root.glob("*/requests.npz")):
        written = str(directory / "a directory")
        model, info = AutoModel.from_pretrained(written, output_loading_info=True)
        (directory / "loaded.json").write_text(
            json.dumps(
                {
                    "class": type(model).__name__,
                    "missing": sorted(info["missing_keys"]),
                    "unexpected": sorted(info["unexpected_keys"]),
                }
            )
        )
        requests = {
            name: torch.from_numpy(value)
            for name, value in np.load(directory / "requests.npz").items()
        }
        inputs = {
            "input_ids": requests["input_ids"],
            "attention_mask": requests["input_mask"],
            "token_type_ids": requests["segment_ids"],
        }
        if model.config.model_type == "distilbert":
            del inputs["token_type_ids"]
        weights = load_file(f"{written}/linker_head.safetensors")
        head = torch.nn.Linear(*reversed(weights["weight"].shape))
        head.load_state_dict(weights)
        with torch.no_grad():
            states = model.eval()(**inputs).last_hidden_state
            rows = torch.arange(len(states))
            places = torch.zeros_like(rows), requests["start_ps"], requests["end_ps"]
            logits = head(torch.cat([states[rows, at] for at in places], dim=-1))
        score = logits[:, 1] - logits[:, 0]
        np.savez(directory / "answers.npz", states=states, score=score)

        tokenizer = AutoTokenizer.from_pretrained(written)
        texts = json.loads((directory / "texts.json").read_text())
        pair = tokenizer(texts[0], texts[2])
        (directory / "tokenized.json").write_text(
            json.dumps(
                {
                    "ids": tokenizer(texts, add_special_tokens=False)["input_ids"],
                    "pair": {
                        "input_ids": pair["input_ids"],
                        "token_type_ids": tokenizer(
                            texts[0], texts[2], return_token_type_ids=True
                        )["token_type_ids"],
                    },
                }
            )
        )

        sentences = SentenceTransformer(written, device="cpu")
        with torch.no_grad():
            encoded = tokenizer(texts, padding=True, return_tensors="pt")
            if model.config.model_type == "distilbert":
                encoded.pop("token_type_ids", None)
            cls = model(**encoded).last_hidden_state[:, 0]
        np.savez(
            directory / "embeddings.npz",
            embeddings=sentences.encode(texts),
            cls=cls,
            max_seq_length=sentences.max_seq_length,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
