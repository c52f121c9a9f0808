"""What HuggingFace's Trainer is told so that it does what a finished run did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs import VOCABULARY, Job
from prepare import OUT, write_json_lines
from quality import PEER, checkpoint, cpus

from kbert.config import Config, parse
from kbert.data import read_dataset
from kbert.tasks import task_class
from kbert.text_files import LIST_SEPARATOR, read_rows


def peer_settings(job: Job, folder: Path) -> dict[str, Any]:
    """The options of a finished run, in peer.py's words, and its rows in files.

    Args:
        job: What was run.
        folder: The run's.
    """
    config = parse(["--config", str(folder / "config.yaml")])
    rows = OUT / "rows" / folder.name
    train = config.train
    return {
        "kind": job.peer,
        "checkpoint": str(checkpoint()) if job.start == "minilm" else None,
        "sizes": sizes_of(config) if job.start == "chinese" else None,
        "vocabulary": str(VOCABULARY),
        "lowercase": config.model.lowercase,
        "files": write_rows(config, rows),
        "max_length": config.data.max_length,
        "threads": cpus(),
        "precision": train.precision,
        "best_metric": train.best_metric,
        **{
            name: getattr(train, name)
            for name in ("epochs", "learning_rate", "batch_size", "warmup", "weight_decay",
                         "clip_norm", "layer_decay", "seed")
        },
        **PEER,
    }  # fmt: skip


def sizes_of(config: Config) -> dict[str, Any]:
    """Of a model from scratch, in BertConfig's words."""
    model = config.model
    vocabulary = VOCABULARY.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return {
        "vocab_size": len(vocabulary),
        "hidden_size": model.hidden_dim,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.intermediate_dim,
    }


def write_rows(config: Config, folder: Path) -> dict[str, str]:
    """The rows of each split as kbert read and drew them, for a process without kbert."""
    columns = task_class(config.task.name).columns(config)
    dataset = read_dataset(config.data, columns, seed=config.train.seed)
    paths = {name: folder / f"{name}.jsonl" for name in dataset.splits}
    for name, path in paths.items():
        split = dataset.splits[name]
        answers = [columns.label] if columns.label else list(columns.targets)
        found = read_rows(split.source, split.rows, [*columns.texts, *answers])
        cells = {
            column: [items_of(cell) for cell in values] if column in columns.lists else values
            for column, values in found.items()
        }
        texts = zip(*(cells[column] for column in columns.texts), strict=True)
        labelled = zip(texts, cells[answers[0]], strict=True)
        write_json_lines(path, ({"texts": row, "label": label} for row, label in labelled))
    return {name: str(path) for name, path in paths.items()}


def items_of(cell: str) -> list[str]:
    """Of a cell that holds a list."""
    return cell.split(LIST_SEPARATOR)
