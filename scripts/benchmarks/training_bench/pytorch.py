"""Trains with sentence-transformers or transformers, in turns; started by measure.py.

Usage: python pytorch.py JOB, which is JSON. Runs in the peer's environment.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from typing import Any

import work
from turns import Turns

# Pairs scored at a time after training, the default of CrossEncoder.predict.
SCORED = 32


def run(job: dict[str, Any], turns: Turns) -> None:
    """Trains, then scores the test mentions.

    Args:
      job: `library`, `work`, `precision`, `num_train_steps`, `threads`.
      turns: says when to go on.
    """
    import torch
    from transformers import TrainerCallback

    class TurnsCallback(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if not turns.step_done():
                control.should_training_stop = True

    torch.set_num_threads(job["threads"])
    about = work.about(job["work"])
    # What is not named here is as the libraries ship it.
    arguments = {
        "per_device_train_batch_size": about["pairs_a_step"],
        "max_steps": job["num_train_steps"],
        "learning_rate": about["learning_rate"],
        "lr_scheduler_type": "linear",
        "warmup_steps": round(about["warmup_fraction"] * job["num_train_steps"]),
        "weight_decay": about["weight_decay"],
        "max_grad_norm": about["clip_norm"],
        "adam_epsilon": 1e-6,
        "seed": about["seed"],
        "use_cpu": True,
        "bf16": job["precision"] == "bfloat16",
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    train = {"cross_encoder": _cross_encoder, "trainer": _trainer}[job["library"]]
    with tempfile.TemporaryDirectory() as output_dir:
        arguments["output_dir"] = output_dir
        train(job, about, arguments, TurnsCallback(), turns)


def _cross_encoder(
    job: dict[str, Any],
    about: dict[str, Any],
    arguments: dict[str, Any],
    callback: Any,
    turns: Turns,
) -> None:
    """CrossEncoderTrainer of sentence-transformers: texts, padded batch by batch."""
    import torch
    from datasets import Dataset
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from torch.utils.data import SequentialSampler

    def in_order(dataset, batch_size, drop_last, **_):
        return DefaultBatchSampler(
            SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last
        )

    model = CrossEncoder(
        about["hugging_face"],
        num_labels=1,
        max_length=about["max_seq_length"],
        device="cpu",
    )
    _, labels = work.pairs(job["work"], "train")
    texts = work.texts(job["work"], "train")[: about["train_pairs"]]
    dataset = Dataset.from_dict(
        {
            "text": [text for text, _ in texts],
            "candidate": [candidate for _, candidate in texts],
            "label": [float(label) for label in labels[: len(texts)]],
        }
    )
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(**arguments, batch_sampler=in_order),
        train_dataset=dataset,
        loss=BinaryCrossEntropyLoss(model),
        callbacks=[callback],
    )
    if turns.wait():
        trainer.train()
    scores = model.predict(
        work.texts(job["work"], "test"),
        batch_size=SCORED,
        activation_fn=torch.nn.Identity(),
        show_progress_bar=False,
    )
    turns.answer(scores.tolist())
    turns.wait()


def _trainer(
    job: dict[str, Any],
    about: dict[str, Any],
    arguments: dict[str, Any],
    callback: Any,
    turns: Turns,
) -> None:
    """Trainer of transformers: encoded pairs, grouped by length, padded by batch."""
    from datasets import Dataset
    from transformers import (
        AutoTokenizer,
        BertForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    class ShuffledBatches(Trainer):
        def _get_train_sampler(self, *args, **kwargs):
            # Dozens of batches come in the order of their lengths, of which a turn
            # would meet a few: in any other order it meets some of each length.
            indices = list(super()._get_train_sampler(*args, **kwargs))
            size = about["pairs_a_step"]
            batches = [indices[at : at + size] for at in range(0, len(indices), size)]
            random.Random(about["seed"]).shuffle(batches)
            return [index for batch in batches for index in batch]

    def dataset(split: str, most: int | None) -> Dataset:
        pairs, labels = work.pairs(job["work"], split)
        rows = [
            {**pair, "labels": label}
            for pair, label in zip(pairs[:most], labels[:most])
        ]
        return Dataset.from_list(rows)

    tokenizer = AutoTokenizer.from_pretrained(about["hugging_face"])
    trainer = ShuffledBatches(
        model=BertForSequenceClassification.from_pretrained(
            about["hugging_face"], num_labels=2
        ),
        args=TrainingArguments(
            **arguments, group_by_length=True, per_device_eval_batch_size=SCORED
        ),
        train_dataset=dataset("train", about["train_pairs"]),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[callback],
    )
    if turns.wait():
        trainer.train()
    logits = trainer.predict(dataset("test", None)).predictions  # [pairs, 2]
    turns.answer((logits[:, 1] - logits[:, 0]).tolist())
    turns.wait()


if __name__ == "__main__":
    JOB = json.loads(sys.argv[1])
    TURNS = Turns(JOB["log"])
    with TURNS.failures():
        run(JOB, TURNS)
