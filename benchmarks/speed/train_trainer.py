"""Trains by HuggingFace's Trainer, an epoch at a time: `python train_trainer.py SETTINGS`."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from rounds import Rounds, read  # noqa: E402
from trainer_peer import encode, training_arguments  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    set_seed,
)


class Timed(TrainerCallback):
    """The rounds of a training by the Trainer."""

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.rounds.begin()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.rounds.step()

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self.rounds.end()


def main() -> None:
    """Train until nobody asks for more."""
    rounds = Rounds()
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    set_seed(settings["seed"])
    rows = read(settings["file"])
    labels = sorted({label for _, label in rows})
    tokenizer = BertTokenizerFast.from_pretrained(settings["checkpoint"])
    arguments = training_arguments(settings, tempfile.mkdtemp())
    compiled = {"torch_compile": settings["compile"]}
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            settings["checkpoint"], num_labels=len(labels)
        ),
        args=dataclasses.replace(arguments, **compiled),
        train_dataset=encode(rows, labels, tokenizer, settings["max_length"]),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Timed(rounds)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
