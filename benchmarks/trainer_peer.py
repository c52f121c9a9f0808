"""The peer of quality.py: HuggingFace's Trainer fine-tunes on the same files, in its own process.

`python benchmarks/trainer_peer.py SETTINGS RESULT`: SETTINGS is a JSON object on the command line
(it has every hyper-parameter; there are no defaults here), RESULT the JSON file to write.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["USE_TF"] = "0"  # transformers would import it too
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)


def main(settings: dict[str, Any], result: Path) -> None:
    """Train, then measure on validation and test data."""
    torch.set_num_threads(settings["threads"])
    set_seed(settings["seed"])
    splits = {
        name: read(Path(file), settings["label_column"]) for name, file in settings["files"].items()
    }
    labels = sorted({label for _, label in splits["train"]})
    tokenizer = BertTokenizerFast.from_pretrained(settings["checkpoint"])
    encoded = {
        name: encode(rows, labels, tokenizer, settings["max_length"])
        for name, rows in splits.items()
    }
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            settings["checkpoint"], num_labels=len(labels)
        ),
        args=training_arguments(settings, str(result.parent / "trainer")),
        train_dataset=encoded["train"],
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    figures = {
        f"{name}_accuracy": accuracy(trainer, encoded[name]) for name in ("validation", "test")
    }
    result.write_text(json.dumps(figures), encoding="utf-8")


def training_arguments(settings: dict[str, Any], folder: str) -> TrainingArguments:
    """The Trainer at its fastest on a CPU: dynamic padding by length, fused AdamW, no logs."""
    return TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        bf16=settings["precision"] == "bfloat16",
        num_train_epochs=settings["epochs"],
        learning_rate=settings["learning_rate"],
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=settings["evaluation_batch_size"],
        warmup_ratio=settings["warmup"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["clip_norm"],
        adam_epsilon=settings["adam_epsilon"],
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        group_by_length=True,
        seed=settings["seed"],
        dataloader_pin_memory=False,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def read(path: Path, label_column: str) -> list[tuple[str, str]]:
    """Texts and labels of a JSONL file, or of a TSV file without quoting."""
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in lines]
    else:
        header, *cells = [line.split("\t") for line in lines]
        rows = [dict(zip(header, row, strict=True)) for row in cells]
    return [(row["text"], row[label_column]) for row in rows]


def encode(
    rows: list[tuple[str, str]], labels: list[str], tokenizer: BertTokenizerFast, max_length: int
) -> list[dict[str, Any]]:
    """Ids once, without padding: the collator pads each batch to its longest row."""
    indices = {label: index for index, label in enumerate(labels)}
    ids = tokenizer([text for text, _ in rows], truncation=True, max_length=max_length)
    return [
        {name: ids[name][row] for name in ids} | {"labels": indices[label]}
        for row, (_, label) in enumerate(rows)
    ]


def accuracy(trainer: Trainer, rows: list[dict[str, Any]]) -> float:
    """Share of right answers; by the Trainer's label_ids, as grouping by length reorders rows."""
    output = trainer.predict(rows)
    return float(np.mean(output.predictions.argmax(axis=-1) == output.label_ids))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
