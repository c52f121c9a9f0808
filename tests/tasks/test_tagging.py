"""Tags of words: which piece learns which tag, what is measured, and what is answered."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import train
from kbert.batches import encode_split
from kbert.config import parse
from kbert.data import read_dataset
from kbert.entities import entities, tag_inside
from kbert.errors import InputError
from kbert.fresh_process import decoded
from kbert.losses import IGNORED
from kbert.preprocessing import tokenizer_from_files
from kbert.preprocessing.alignment import first_places, text_words
from kbert.saving import save_checkpoint
from kbert.tasks.tagging import INTENT, TAGS, Tagging
from kbert.tasks.task import Gold, Learned, Rows
from kbert.text_files import LIST_SEPARATOR
from kbert.training import new_model
from serve.client import predict_rest
from serve.model_config import ModelConfig
from serve.server import LocalServer
from tests.conftest import export_untrained

LABELS = ("B-x", "B-y", "I-x", "O")
INTENTS = ("ask", "tell")
NAMES = {"tags": LABELS, "intent": INTENTS}
WORDS = ["--task", "tagging", "--data.text_column", "tokens"]
JOINT = ["--task.intent_column", "intent"]


@pytest.fixture
def make(tiny_options: list[str], tiny_checkpoint: Path):
    def make_task(*words: str) -> Tagging:
        config = parse([*tiny_options, *WORDS, *words])
        return Tagging(config, tokenizer_from_files(tiny_checkpoint), Learned(names=NAMES))

    return make_task


def cells(*rows: str) -> tf.Tensor:
    """Lists whose items are divided by spaces, as data.py gives them."""
    return tf.constant([row.replace(" ", LIST_SEPARATOR) for row in rows])


def batch_of(task: Tagging, tokens: tf.Tensor, *targets: tf.Tensor):
    encoded = task.encode_targets([tokens], list(targets))
    rows = Rows(task.encode([tokens]), tf.zeros(len(tokens), tf.int32), encoded)
    return task.batch(rows, tf.constant([0, 0]))


def gold_of(**columns: list[str]) -> Gold:
    return Gold(None, lambda names: {name: columns[name] for name in names})


def test_the_first_piece_of_a_token_has_its_tag(make) -> None:
    tokens, tags = cells("the cats sat", "dogs"), cells("O B-x I-x", "B-y")
    inputs, targets, weights = batch_of(make(), tokens, tags)
    # the cat ##s sat | dog ##s
    ids = [[2, 5, 6, 12, 8, 3], [2, 7, 12, 3, 0, 0]]
    assert inputs["token_ids"].numpy().tolist() == ids
    none = IGNORED
    assert targets[..., 0].numpy().tolist() == [[none, 3, 0, none, 2, none], [none, 1, *[none] * 4]]
    assert targets[..., 1].numpy().tolist() == [[-1, 0, 1, -1, 2, -1], [-1, 0, -1, -1, -1, -1]]
    assert weights.numpy().tolist() == [[0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]


def test_further_words_of_a_token_are_inside_of_what_it_is(make) -> None:
    # each token is "the" and ".", and I-y is no tag that is known
    tokens, tags = cells("the. the. the. the."), cells("B-x I-x O B-y")
    _, targets, _ = batch_of(make(), tokens, tags)
    assert targets[0, 1:-1, 0].numpy().tolist() == [0, 2, 2, 2, 3, 3, 1, IGNORED]
    assert targets[0, 1:-1, 1].numpy().tolist() == [0, -1, 1, -1, 2, -1, 3, -1]


def test_what_is_cut_off_unseen_or_unknown_is_not_learnt(make) -> None:
    tokens = cells("\u0301 the [MASK] cat " + "sat " * 20 + "ran")
    _, targets, weights = batch_of(make(), tokens, cells("B-x B-z " + "O " * 22 + "O"))
    assert targets.shape == (1, 12, 2)
    # "the" has a tag that training lacks; [MASK] is one piece of three words
    assert targets[0, 1:-1, 0].numpy().tolist() == [IGNORED, *[3] * 9]
    assert targets[0, 1:-1, 1].numpy().tolist() == list(range(1, 11))
    assert weights.numpy().sum() == 9


def test_loss_is_torchs_over_first_pieces(make) -> None:
    torch = pytest.importorskip("torch")
    task = make(*JOINT)
    tokens, tags = cells("the cats sat", "dogs"), cells("O B-x I-x", "B-y")
    _, targets, weights = batch_of(task, tokens, tags, tf.constant(["tell", "unknown"]))
    assert weights[INTENT].numpy().tolist() == [1, 0]
    generator = np.random.default_rng(0)
    logits = {TAGS: generator.normal(size=(2, 6, 4)), INTENT: generator.normal(size=(2, 2))}
    logits = {name: array.astype("float32") for name, array in logits.items()}
    answers = {TAGS: targets[TAGS][..., 0].numpy(), INTENT: np.array([1, IGNORED])}
    for name, loss in task.loss().items():
        ours = loss(targets[name], logits[name], sample_weight=weights[name])
        theirs = torch.nn.functional.cross_entropy(
            torch.tensor(logits[name].reshape(-1, logits[name].shape[-1])),
            torch.tensor(answers[name].ravel()).long(),
        )
        assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


def outputs_of_logits(task: Tagging, logits, targets, weights) -> dict[str, np.ndarray]:
    found = task.outputs(logits, targets, weights)
    return {
        name: np.array([np.array(row) for row in part.to_list()] + [None], object)[:-1]
        if isinstance(part, tf.RaggedTensor)
        else part.numpy()
        for name, part in found.items()
    }


def test_score_counts_entities_tokens_and_sentences(make) -> None:
    task = make(*JOINT)
    rows, intents = ["the cats sat", "\u0301 dogs ran"], ["tell", "unknown"]
    tags = ["O B-x I-x", "B-z B-y O"]
    _, targets, weights = batch_of(task, cells(*rows), cells(*tags), tf.constant(intents))
    # right but for what has no piece: that is O
    logits = {
        TAGS: tf.one_hot(targets[TAGS][..., 0], 4) * 20.0,
        INTENT: tf.constant([[0.0, 20.0], [0.0, 20.0]]),
    }
    outputs = outputs_of_logits(task, logits, targets, weights)
    lists = {
        "tokens": [row.replace(" ", LIST_SEPARATOR) for row in rows],
        "tags": [row.replace(" ", LIST_SEPARATOR) for row in tags],
    }
    gold = gold_of(**lists, intent=intents)
    figures = task.score(outputs, gold)
    assert figures["token_accuracy"] == pytest.approx(5 / 6)
    assert (figures["precision"], figures["recall"]) == (1, pytest.approx(2 / 3))
    assert figures["per_type"]["z"]["support"] == 1
    assert figures["intent_accuracy"] == figures["sentence_accuracy"] == 0.5
    assert figures["loss"] == pytest.approx(0, abs=1e-6)
    json.dumps(figures, allow_nan=False)
    assert task.predictions(outputs, gold) == {
        "tokens": rows,
        "tags": tags,
        "prediction": ["O B-x I-x", "O B-y O"],
        "intent": intents,
        "intent_prediction": ["tell", "tell"],
        "intent_score": ["1", "1"],
    }
    titles = [table.title for table in task.tables(figures)]
    assert titles == ["overall, 2 rows", "entities by type"]


@pytest.mark.parametrize(
    ("tokens", "tags", "message"),
    [
        ("a b", "O", r"row 2: 2 tokens \(column 'tokens'\) and 1 tags \(column 'tags'\); give"),
        ("a b", "O b-x", r"row 2: the tag 'b-x' \(column 'tags'\) must be O, B-NAME or I-NAME"),
        ("a b", "O B-", r"row 2: the tag 'B-'"),
    ],
)
def test_rows_that_are_refused(
    tiny_options: list[str], tmp_path: Path, tokens: str, tags: str, message: str
) -> None:
    path = tmp_path / "bad.tsv"
    path.write_text(f"tokens\ttags\na b\tO I-x\n{tokens}\t{tags}\n", encoding="utf-8")
    config = parse([*tiny_options, *WORDS, "--data.train", str(path)])
    with pytest.raises(InputError, match=message):
        read_dataset(config.data, Tagging.columns(config), seed=0)


def test_options_that_tagging_has_not(make) -> None:
    with pytest.raises(InputError, match="tagging reads one column"):
        make("--data.text_column", "[a, b]")
    with pytest.raises(InputError, match="stride: tagging reads no windows"):
        make("--data.stride", "2")


def test_served_text_is_read_as_trained_tokens(
    shared_data: Path, tiny_options: list[str], minilm: Path
) -> None:
    """The same ids, and all words that are asked about have been learnt."""
    lines = (shared_data / "atis" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    records = [json.loads(line) for line in lines]
    names = {"tags": tuple(sorted({tag for record in records for tag in record["tags"]}))}
    config = parse([*tiny_options, *WORDS, "--data.max_length", "64"])
    task = Tagging(config, tokenizer_from_files(minilm), Learned(names=names))
    tokens, tags = (cells(*(" ".join(of[name]) for of in records)) for name in ("tokens", "tags"))
    texts = tf.constant([" ".join(record["tokens"]) for record in records])
    (trained,) = task.encode([tokens])
    served, places, _ = task.tokenizer.tokenize_with_offsets(texts)
    assert trained.to_list() == served.to_list()
    _, spans = text_words(texts, task.tokenizer)
    learnt, numbers = task.encode_targets([tokens], [tags])
    for row, firsts in enumerate(first_places(places, spans).to_list()):
        assert set(np.flatnonzero(numbers[row].numpy() >= 0)) <= set(firsts)
        taught = np.flatnonzero(learnt[row].numpy() != IGNORED).tolist()
        # but for the "." of "st." where no I-NAME is known
        unknown = [tag for tag in records[row]["tags"] if tag_inside(tag) not in names["tags"]]
        assert set(taught) <= set(firsts) and (unknown or taught == firsts)


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    base = tmp_path_factory.mktemp("run") / "export" / "tagger"
    words = [*WORDS, "--data.max_length", "20"]
    return export_untrained(tiny_checkpoint, base, *words, names=NAMES)


def test_export_answers_as_huggingface_on_every_probe(exported) -> None:
    """The certificate holds labels, scores and places of odd Unicode; a difference is an error."""
    _, _, folder = exported
    parity = json.loads((folder / "assets.extra" / "parity.json").read_text(encoding="utf-8"))
    assert parity["huggingface"] == "BertForTokenClassification"
    assert parity["tf_serving"] == "2.12"
    kinds = ("largest_difference", "other_values")
    compared = {
        name
        for name, of in parity["outputs"].items()
        if any("huggingface" in of.get(kind, {}) for kind in kinds)
    }
    assert compared == {"words", "labels", "scores", "starts", "ends"}
    probe = next(of for of in parity["probes"] if "null \0 byte" in of["inputs"]["text"])
    outputs = probe["saved_model"]["outputs"]
    for word, start, end in zip(*(outputs[of] for of in ("words", "starts", "ends")), strict=True):
        assert word == (probe["inputs"]["text"][start:end] if start >= 0 else "")


def test_transformers_pipeline_says_the_same(exported, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, task, _ = exported
    save_checkpoint(model, tmp_path / "hf", tokenizer=task.tokenizer, labels=task.labels)
    pipeline = transformers.pipeline(
        "token-classification", str(tmp_path / "hf"), aggregation_strategy="first", device="cpu"
    )
    texts = ["the cats sat not good", "a Dog ran badly", "好人 dogs"]
    served = task.signatures(model)["serving_default"].function(tf.constant(texts))
    answers = {name: decoded(part.numpy()) for name, part in served.items()}
    columns = task.answer_columns(answers)
    for row, text in enumerate(texts):
        labels = columns["labels"][row]
        starts, ends = columns["starts"][row], columns["ends"][row]
        ours = [
            (kind, text[starts[first] : ends[end - 1]]) for kind, first, end in entities(labels)
        ]
        theirs = [(of["entity_group"], text[of["start"] : of["end"]]) for of in pipeline(text)]
        assert ours == [of for of in theirs if of[0] != "O"]
        assert columns["entities"][row] == [f"{kind}: {words}" for kind, words in ours]


def test_words_that_are_cut_off_are_o(make, tiny_options, tiny_checkpoint: Path) -> None:
    task = make(*JOINT)
    config = parse([*tiny_options, *WORDS])
    model = new_model(task, tiny_checkpoint, config.model, config.train)
    serve = task.signatures(model)["serving_default"].function
    long, short = "the " * 12 + "cat", "[MASK]."
    found = {name: part.numpy() for name, part in serve(tf.constant([long, short, ""])).items()}
    assert found["words"].shape == found["ends"].shape == (3, 13)
    assert (found["scores"][0, :10] > 0).all() and not found["scores"][0, 10:].any()
    assert found["labels"][0, 10:].tolist() == [b"O"] * 3
    assert found["words"][1, :5].tolist() == [b"[", b"MASK", b"]", b".", b""]
    assert (found["scores"][1, :5] > 0).tolist() == [True, False, False, True, False]
    assert found["labels"][1, 4:].tolist() == [b""] * 9
    assert found["starts"][2].tolist() == found["ends"][2].tolist() == [-1] * 13
    assert set(found["intent"].tolist()) <= {b"ask", b"tell"}
    assert ((found["intent_score"] >= 0.5) & (found["intent_score"] <= 1)).all()
    assert serve(tf.constant(["", " "]))["words"].shape == (2, 0)


def write_requests(path: Path, rows: int) -> Path:
    """Good things are x, bad ones y; the intent is that of the first word."""
    generator = np.random.default_rng(0)
    lines = []
    for _ in range(rows):
        words = generator.choice(["the", "cats", "good", "bad", "sat."], generator.integers(2, 7))
        tags = [{"good": "B-x", "bad": "B-y"}.get(word, "O") for word in words]
        intent = "ask" if words[0] in ("the", "good") else "tell"
        lines.append(json.dumps({"tokens": words.tolist(), "tags": tags, "intent": intent}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_from_a_file_to_a_client(tiny_options: list[str], tmp_path: Path) -> None:
    options = [*tiny_options, *WORDS, *JOINT, "--data.train"]
    options += [str(write_requests(tmp_path / "train.jsonl", 120)), "--train.best_metric", "f1"]
    options += ["--train.learning_rate", "1e-2", "--train.epochs", "20", "--export.name", "tagger"]
    options += ["--export.huggingface", "true"]
    assert train.main(options) == 0
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["f1"] > 0.8
    assert {"f1", "sentence_accuracy", "per_type"} <= metrics["test"].keys()
    history = metrics["train"]["history"]
    assert all(
        {"val_f1", "val_tags_accuracy", "val_intent_accuracy"} <= of.keys() for of in history
    )
    assert max(of["val_f1"] for of in history) == metrics["validation"]["f1"]
    config = json.loads((run / "huggingface" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["BertForTokenClassification"]
    assert config["id2label"] == {"0": "B-x", "1": "B-y", "2": "O"}
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    base = (run / "export" / "tagger").resolve()
    with LocalServer([ModelConfig("tagger", base)]) as server:
        url = f"http://{server.rest_address}/v1/models/tagger"
        answers = predict_rest(url, {"text": [row["tokens"] for row in rows]})
    for row, words, labels, intent in zip(
        rows, answers["words"], answers["labels"], answers["intent"], strict=True
    ):
        # "sat." is two words
        first = [label for word, label in zip(words, labels, strict=True) if word not in ("", ".")]
        assert first == row["prediction"].split()
        assert intent == row["intent_prediction"]


def test_rows_of_files_are_measured(tiny_options: list[str], tmp_path: Path) -> None:
    """Rows come back in their order, with their own tokens."""
    from kbert.evaluation import collect

    options = [*tiny_options, *WORDS, *JOINT]
    options += ["--data.train", str(write_requests(tmp_path / "train.jsonl", 60))]
    config = parse(options)
    dataset = read_dataset(config.data, Tagging.columns(config), seed=0)
    checkpoint = Path(config.model.checkpoint)
    task = Tagging(config, tokenizer_from_files(checkpoint), Learned(names=dataset.names))
    split = encode_split(dataset.splits["test"], task, cache_dir=config.data.cache_dir)
    model = new_model(task, checkpoint, config.model, config.train)
    columns = task.predictions(collect(model, task, split), split.gold)
    serve = task.signatures(model)["serving_default"].function
    for tokens, prediction in zip(columns["tokens"], columns["prediction"], strict=True):
        served = serve(tf.constant([tokens]))
        words, labels = (served[name].numpy()[0].tolist() for name in ("words", "labels"))
        kept = [label for word, label in zip(words, labels, strict=True) if word != b"."]
        assert [label.decode() for label in kept] == prediction.split()
