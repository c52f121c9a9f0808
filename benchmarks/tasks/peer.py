"""HuggingFace's Trainer on the rows, the checkpoint and the options of one of `make tasks`' runs.

`python benchmarks/tasks/peer.py SETTINGS.json RESULT.json`: SETTINGS has every hyper-parameter
(there are no defaults here), and files of rows: {"texts": [...], "label": ...}, one a line.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from trainer_peer import training_arguments  # first: it tells transformers to leave TensorFlow out

# isort: split
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizerFast,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    set_seed,
)

IGNORED = -100
Rows = list[dict[str, Any]]


def main(settings: dict[str, Any], result: Path) -> None:
    """Train, measure on the test rows, write the figures."""
    torch.set_num_threads(settings["threads"])
    set_seed(settings["seed"])
    splits = {name: read(Path(file)) for name, file in settings["files"].items()}
    figures = KINDS[settings["kind"]](settings, splits, str(result.parent / "trainer"))
    result.write_text(json.dumps(figures), encoding="utf-8")


def classification(settings: dict[str, Any], splits: dict[str, Rows], folder: str) -> dict:
    """Accuracy and macro-F1 of BertForSequenceClassification."""
    from sklearn.metrics import accuracy_score, f1_score

    labels = sorted({row["label"] for row in splits["train"]})
    rows = {
        name: encode_texts(settings, of, lambda row: labels.index(row["label"]))
        for name, of in splits.items()
    }
    model = new_model(BertForSequenceClassification, settings, num_labels=len(labels))

    def figures(gold: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        predicted = logits.argmax(axis=-1)
        return {
            "accuracy": accuracy_score(gold, predicted),
            "f1_macro": f1_score(gold, predicted, average="macro"),
        }

    return figures(*train(settings, model, rows, folder, figures))


def multi_label(settings: dict[str, Any], splits: dict[str, Rows], folder: str) -> dict:
    """F1 and subset accuracy of BertForSequenceClassification, above a half each.

    Labels that training does not have are of one class that is never chosen.
    """
    from sklearn.metrics import accuracy_score, f1_score

    labels = sorted({label for row in splits["train"] for label in row["label"]})

    def targets(row: dict[str, Any], *, unknown: bool = False) -> list[float]:
        found = [float(label in row["label"]) for label in labels]
        return [*found, float(not {*row["label"]} <= {*labels})] if unknown else found

    rows = {name: encode_texts(settings, of, targets) for name, of in splits.items()}
    model = new_model(
        BertForSequenceClassification,
        settings,
        num_labels=len(labels),
        problem_type="multi_label_classification",
    )

    def figures(gold: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        chosen = logits > 0
        seen = np.any(gold, axis=0) | np.any(chosen, axis=0)
        return {
            "f1_micro": f1_score(gold, chosen, average="micro"),
            "f1_macro": f1_score(gold[:, seen], chosen[:, seen], average="macro"),
            "subset_accuracy": accuracy_score(gold, chosen),
        }

    _, logits = train(settings, model, rows, folder, figures)
    gold = np.array([targets(row, unknown=True) for row in splits["test"]])
    return figures(gold, np.pad(logits, ((0, 0), (0, 1)), constant_values=-1))


def regression(settings: dict[str, Any], splits: dict[str, Rows], folder: str) -> dict:
    """Correlations of BertForSequenceClassification with one output."""
    rows = {
        name: encode_texts(settings, of, lambda row: float(row["label"]))
        for name, of in splits.items()
    }
    model = new_model(
        BertForSequenceClassification, settings, num_labels=1, problem_type="regression"
    )
    return correlations(*train(settings, model, rows, folder, correlations))


def tagging(settings: dict[str, Any], splits: dict[str, Rows], folder: str) -> dict:
    """Entity F1 of BertForTokenClassification, a tag for the first piece of each word."""
    from seqeval.metrics import f1_score

    tags = sorted({tag for row in splits["train"] for tag in row["label"]})
    rows = {name: encode_words(settings, of, tags) for name, of in splits.items()}
    model = new_model(BertForTokenClassification, settings, num_labels=len(tags))
    collator = DataCollatorForTokenClassification(tokenizer_of(settings))

    def figures(gold: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        """Of the first pieces whose tags training has: what validation is looked at for."""
        is_known, predicted = gold != IGNORED, logits.argmax(axis=-1)
        columns = [
            [[tags[of] for of in row[known]] for row, known in zip(values, is_known, strict=True)]
            for values in (gold, predicted)
        ]
        return {"f1": f1_score(*columns)}

    _, logits = train(settings, model, rows, folder, figures, collator=collator)
    gold, found = [], []
    for row, encoded, scores in zip(splits["test"], rows["test"], logits, strict=True):
        gold.append(row["label"])
        found.append([tags[of] for of in scores[encoded["places"]].argmax(axis=-1)])
    return {"f1": f1_score(gold, found)}


def embedding(settings: dict[str, Any], splits: dict[str, Rows], folder: str) -> dict:
    """Correlations of the cosines of mean-pooled vectors, trained by their squared error."""
    scores = [float(row["label"]) for row in splits["train"]]
    low, high = min(scores), max(scores)
    tokenizer = tokenizer_of(settings)

    def pairs(of: Rows) -> Rows:
        return [
            {"texts": row["texts"], "labels": (float(row["label"]) - low) / (high - low)}
            for row in of
        ]

    def collate(batch: Rows) -> dict[str, torch.Tensor]:
        texts = [row["texts"][side] for side in (0, 1) for row in batch]
        ids = tokenizer(
            texts, truncation=True, max_length=settings["max_length"], padding=True,
            return_tensors="pt",
        )  # fmt: skip
        return {**ids, "labels": torch.tensor([row["labels"] for row in batch])}

    model = CosineSimilarity(BertModel.from_pretrained(settings["checkpoint"]))
    rows = {name: pairs(of) for name, of in splits.items()}
    return correlations(
        *train(settings, model, rows, folder, correlations, collator=collate, by_length=False)
    )


class CosineSimilarity(torch.nn.Module):
    """The cosine of two texts, the first half of a batch beside the second."""

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids, attention_mask, token_type_ids, labels) -> dict[str, torch.Tensor]:
        states = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
        mask = attention_mask[:, :, None].to(states.dtype)
        pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        first, second = pooled.chunk(2)
        cosines = torch.nn.functional.cosine_similarity(first, second)
        return {"loss": torch.nn.functional.mse_loss(cosines, labels), "logits": cosines}


def train(
    settings: dict[str, Any],
    model: torch.nn.Module,
    rows: dict[str, Rows],
    folder: str,
    figures: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    *,
    collator: Callable | None = None,
    by_length: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Gold answers and outputs of the test rows, in their order.

    With settings["best_metric"] of the epoch that has the best of these `figures` on validation.
    """
    arguments = training_arguments(settings, folder)
    arguments.group_by_length = by_length
    arguments.remove_unused_columns = by_length
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows["train"],
        data_collator=collator or DataCollatorWithPadding(tokenizer_of(settings)),
    )
    trainer.create_optimizer()
    decay_by_layer(trainer.optimizer, model, settings["layer_decay"])
    best = KeepBest(trainer, rows["validation"], figures, settings["best_metric"])
    if settings["best_metric"]:
        trainer.add_callback(best)
    trainer.train()
    if best.weights is not None:
        model.load_state_dict(best.weights)
    trainer.args.group_by_length = False  # it would predict the rows in another order than theirs
    output = trainer.predict(rows["test"])
    return output.label_ids, output.predictions


def decay_by_layer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, layer_decay: float
) -> None:
    """Give each layer's parameters a rate of their own: kbert's train.layer_decay."""
    if layer_decay == 1:
        return
    names = {parameter: name for name, parameter in model.named_parameters()}
    layers = model.config.num_hidden_layers
    groups = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            at = re.search(r"encoder\.layer\.(\d+)\.", name)
            block = layers if at is None else int(at[1])
            exponent = layers + 1 if ".embeddings." in name else layers - block
            rate = group["lr"] * layer_decay**exponent
            groups.append({**group, "params": [parameter], "lr": rate, "initial_lr": rate})
    optimizer.param_groups[:] = groups


class KeepBest(TrainerCallback):
    """Measures the validation rows after each epoch, and keeps the weights of the best."""

    def __init__(
        self,
        trainer: Trainer,
        rows: Rows,
        figures: Callable[[np.ndarray, np.ndarray], dict[str, float]],
        metric: str | None,
    ) -> None:
        self.trainer, self.rows, self.figures, self.metric = trainer, rows, figures, metric
        self.value = -np.inf
        self.weights: dict[str, torch.Tensor] | None = None

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        output = self.trainer.predict(self.rows)
        value = self.figures(output.label_ids, output.predictions)[self.metric]
        if value > self.value:
            self.value = value
            self.weights = copy.deepcopy(self.trainer.model.state_dict())


def encode_texts(settings: dict[str, Any], rows: Rows, label: Callable[[dict], Any]) -> Rows:
    """Ids of texts or pairs without padding; further texts are joined to the second."""
    tokenizer = tokenizer_of(settings)
    encoded = []
    for row in rows:
        first, *others = row["texts"]
        pair = [" ".join(others)] if others else []
        ids = tokenizer(first, *pair, truncation=True, max_length=settings["max_length"])
        encoded.append({**ids, "labels": label(row)})
    return encoded


def encode_words(settings: dict[str, Any], rows: Rows, tags: list[str]) -> Rows:
    """Ids of words, the tag of each word at its first piece, and where these pieces are.

    A tag that training does not have counts in no loss.
    """
    tokenizer = tokenizer_of(settings)
    encoded = []
    for row in rows:
        ids = tokenizer(
            row["texts"][0], is_split_into_words=True, truncation=True,
            max_length=settings["max_length"],
        )  # fmt: skip
        words = ids.word_ids()
        before = [None, *words[:-1]]
        places = [
            place for place, word in enumerate(words) if word is not None and word != before[place]
        ]
        labels = [IGNORED] * len(words)
        for place, tag in zip(places, row["label"], strict=True):
            labels[place] = tags.index(tag) if tag in tags else IGNORED
        encoded.append({**ids, "labels": labels, "places": places})
    return encoded


def correlations(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's."""
    from scipy.stats import pearsonr, spearmanr

    predicted = predicted.reshape(len(gold))
    return {
        "pearson": float(pearsonr(predicted, gold).statistic),
        "spearman": float(spearmanr(predicted, gold).statistic),
    }


def new_model(kind: type, settings: dict[str, Any], **labels: Any) -> torch.nn.Module:
    """The checkpoint's, or one from scratch of given sizes."""
    if settings["sizes"] is None:
        return kind.from_pretrained(settings["checkpoint"], **labels)
    return kind(BertConfig(**settings["sizes"], **labels))


def tokenizer_of(settings: dict[str, Any]) -> BertTokenizerFast:
    """The checkpoint's, or that of a vocabulary."""
    if settings["sizes"] is None:
        return BertTokenizerFast.from_pretrained(settings["checkpoint"])
    return BertTokenizerFast(settings["vocabulary"], do_lower_case=settings["lowercase"])


def read(path: Path) -> Rows:
    """The rows of a file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


KINDS = {
    "classification": classification,
    "multi_label": multi_label,
    "regression": regression,
    "tagging": tagging,
    "embedding": embedding,
}

if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
