"""Good and bad PyTorch files, read by `bert_export.modeling.pytorch_bin`.

    python pytorch_bins.py DIRECTORY

Run where torch and numpy are but no TensorFlow. `outcomes.json` gets, by file, the
error's message or the tensors' shapes, types and sums.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import torch

from bert_export.errors import UserError
from bert_export.modeling import pytorch_bin


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Unknown:
    """No harm, but no tensor either."""


def write(root: Path) -> None:
    tensors = {
        "bert.a.weight": torch.arange(6.0).reshape(2, 3),
        "bert.half": torch.ones(4, dtype=torch.bfloat16),
        "bert.embeddings.position_ids": torch.arange(5),
    }
    torch.save(tensors, root / "good.bin")
    torch.save(tensors, root / "old.bin", _use_new_zipfile_serialization=False)
    parameters = {"a": torch.nn.Parameter(torch.ones(2))}
    torch.save(parameters, root / "parameters.bin")

    touch = f"touch '{root / 'executed'}'"
    torch.save(tensors | {"b": Malicious(touch)}, root / "malicious.bin")
    torch.save(
        tensors | {"b": Malicious(touch)},
        root / "old_malicious.bin",
        _use_new_zipfile_serialization=False,
    )
    (root / "pickle.bin").write_bytes(pickle.dumps(Malicious(touch), protocol=2))
    torch.save(tensors | {"b": Unknown()}, root / "unknown.bin")

    torch.save({"state_dict": tensors, "epoch": 3}, root / "nested.bin")
    torch.save(list(tensors.values()), root / "list.bin")
    for name in ("good", "old"):
        whole = (root / f"{name}.bin").read_bytes()
        (root / f"{name}_half.bin").write_bytes(whole[: len(whole) // 2])
        (root / f"{name}_short.bin").write_bytes(whole[:-30])
    (root / "empty.bin").write_bytes(b"")
    (root / "text.bin").write_text("version https://git-lfs.github.com/spec/v1\n")


def read(path: Path) -> str | dict[str, list]:
    try:
        found = pytorch_bin.tensors(path)
        arrays = {name: tensor.read() for name, tensor in found.items()}
    except UserError as error:
        return str(error)
    assert all(found[name].shape == array.shape for name, array in arrays.items())
    return {
        name: [list(array.shape), str(array.dtype), float(array.sum())]
        for name, array in arrays.items()
    }


def main(root: Path) -> None:
    write(root)
    outcomes = {path.name: read(path) for path in sorted(root.glob("*.bin"))}
    outcomes["missing.bin"] = read(root / "missing.bin")
    assert "tensorflow" not in sys.modules
    (root / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
