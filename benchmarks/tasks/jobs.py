"""What `make tasks` runs: every recipe on real data, at its real size."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from prepare import DATA, OUT, SHARED

VOCABULARY = SHARED / "vocab" / "bert-base-chinese" / "vocab.txt"
PREPARED = OUT / "data"


@dataclass(frozen=True)
class Job:
    """One run of train.py, and which of its figures go into the table."""

    name: str
    """Of its folder."""
    task: str
    """For the table: what is done."""
    data: str
    """For the table: on what."""
    recipe: str
    """File of recipes/."""
    files: dict[str, Path]
    """data.train, data.validation, data.test: those that there are."""
    figures: tuple[str, ...]
    """Names of figures of the test split in metrics.json; of a block in it as BLOCK.NAME."""
    words: tuple[str, ...] = ()
    """Options beside the recipe's."""
    start: str = "minilm"
    """minilm, small (a masked-LM checkpoint of 2 layers), scratch (the recipe learns a
    vocabulary), chinese (from scratch with a vocabulary), teacher (its options begin with layers
    of its teacher), or the name of an earlier job whose weights it starts from."""
    teacher: str | None = None
    """The name of an earlier job whose run is learnt from."""
    seeds: int = 1
    """How often it is run, each time from another seed."""
    peer: str | None = None
    """How HuggingFace's Trainer does the same: a function of peer.py; None where it is not asked.
    """
    beside: tuple[str, str] | None = None
    """The name of a job whose figures are the reference where there is no Trainer's, and what to
    call them."""


def split_files(folder: Path, suffix: str) -> dict[str, Path]:
    """The three files of a data set."""
    names = {"train": "train", "validation": "valid", "test": "test"}
    return {split: folder / f"{name}.{suffix}" for split, name in names.items()}


def of_shared(name: str, suffix: str) -> dict[str, Path]:
    """The three files of a public data set."""
    return split_files(DATA / name, suffix)


BBC = {"train": PREPARED / "bbc.csv"}
CLINC = of_shared("clinc150", "jsonl")
CLINC_OOS = split_files(PREPARED / "clinc150", "jsonl")
QUESTIONS = {
    split: PREPARED / "questions" / f"{split}.jsonl" for split in ("train", "validation", "test")
}
ATIS_INTENTS = split_files(PREPARED / "atis_intents", "jsonl")
UNLABELLED = [str(ATIS_INTENTS["train"]), str(DATA / "clinc150" / "oos_train.jsonl")]
"""Requests of other kinds than clinc150's intents: it has no more of its own."""
SICK = of_shared("sick", "tsv")
CLASSES = ("accuracy", "f1_macro")
IN_SCOPE = ("--task.out_of_scope=null",)
AS_IT_COMES = ("--train.learning_rate=1e-9", "--train.epochs=1", "--train.weight_decay=0")
"""Options of a training that leaves the weights as they are."""
TRANSLATIONS = (
    ("en_de", "multi30k, English to German", of_shared("multi30k_en_de", "tsv")),
    ("en_zh", "tatoeba, English to Chinese", of_shared("tatoeba_en_zh", "tsv")),
)
STARTS = {"fine_tuned": "pretrained", "frozen": "pretrained, frozen", "random": "random"}


def jobs() -> list[Job]:
    """All of them, in the order in which they are run: what others start from is first."""
    return [*CLASSIFICATION, *FEATURES, *TOKENS, *STUDENTS, *VECTORS, *translations(), *LONG]


CLASSIFICATION = (
    Job("news", "news topics", "BBC articles", "news.yaml", BBC, CLASSES, peer="classification"),
    Job("chinese_news", "news topics, from scratch", "thucnews titles", "chinese_news.yaml",
        of_shared("thucnews", "csv"), CLASSES, start="chinese", peer="classification"),
    Job("email", "spam", "spamassassin", "email.yaml", of_shared("spamassassin", "jsonl"),
        CLASSES, peer="classification"),
    Job("sentiment", "sentiment", "sst2", "sentiment.yaml", of_shared("sst2", "tsv"), CLASSES,
        peer="classification", seeds=3),
    Job("chinese_sentiment", "sentiment, from scratch", "chnsenticorp hotel reviews",
        "chinese_sentiment.yaml", of_shared("chnsenticorp_hotel", "csv"), CLASSES,
        start="chinese", peer="classification"),
    Job("intent", "intent", "clinc150, in scope", "intent.yaml", CLINC, CLASSES,
        IN_SCOPE, peer="classification"),
    Job("intent_out_of_scope", "intent or out of scope", "clinc150 with out-of-scope rows",
        "intent.yaml", CLINC_OOS,
        ("out_of_scope.in_scope_accuracy", "out_of_scope.recall", "out_of_scope.precision",
         "out_of_scope.roc_auc")),
    Job("pairs_mrpc", "paraphrase", "mrpc", "pairs_mrpc.yaml", of_shared("mrpc", "tsv"), CLASSES,
        peer="classification", seeds=3),
    Job("pairs_sick_entailment", "entailment", "sick", "pairs_sick_entailment.yaml", SICK,
        CLASSES, peer="classification", seeds=3),
    Job("pairs_sick_relatedness", "relatedness (regression)", "sick",
        "pairs_sick_relatedness.yaml", SICK, ("pearson", "spearman"), peer="regression", seeds=3),
    Job("multi_label", "several intents a text", "atis", "multi_label.yaml", ATIS_INTENTS,
        ("f1_micro", "f1_macro", "subset_accuracy"), peer="multi_label"),
)  # fmt: skip
FEATURES = (
    Job("features", "sentiment, frozen encoder, Keras", "sst2", "features.yaml",
        of_shared("sst2", "tsv"), CLASSES, beside=("sentiment", "fine-tuned")),
    Job("features_scikit_learn", "sentiment, frozen encoder, scikit-learn", "sst2",
        "features.yaml", of_shared("sst2", "tsv"), CLASSES, ("--task.classifier=scikit-learn",),
        beside=("sentiment", "fine-tuned")),
)  # fmt: skip
TOKENS = (
    Job("tagging", "slots", "atis", "tagging.yaml", of_shared("atis", "jsonl"), ("f1",),
        peer="tagging", seeds=3),
    Job("tagging_joint", "slots and intent", "atis", "tagging.yaml", of_shared("atis", "jsonl"),
        ("f1", "intent_accuracy", "sentence_accuracy"), ("--task.intent_column=intent",),
        beside=("tagging", "slots alone")),
    Job("masked_lm_before", "masked words, the 2-layer checkpoint as it comes", "clinc150 texts",
        "masked_lm.yaml", CLINC, ("perplexity", "accuracy"), AS_IT_COMES, start="small"),
    Job("masked_lm", "masked words, trained on the domain", "clinc150 texts", "masked_lm.yaml",
        CLINC, ("perplexity", "accuracy"), ("--export.huggingface=true",), start="small",
        beside=("masked_lm_before", "as it comes")),
    Job("intent_small", "intent, the 2-layer checkpoint", "clinc150, in scope", "intent.yaml",
        CLINC, ("accuracy",), IN_SCOPE, start="small"),
    Job("intent_small_after", "intent, after masked words", "clinc150, in scope", "intent.yaml",
        CLINC, ("accuracy",), IN_SCOPE, start="masked_lm",
        beside=("intent_small", "without masked words")),
    Job("pretraining", "masked words, from scratch", "multi30k captions", "pretraining.yaml",
        of_shared("multi30k_en_de", "tsv"), ("perplexity", "accuracy"),
        ("--data.text_column=en", "--task.next_sentence=false", "--train.epochs=4"),
        start="scratch"),
    Job("pretraining_chinese", "masked words and next sentences, from scratch",
        "chnsenticorp hotel reviews", "pretraining.yaml", of_shared("chnsenticorp_hotel", "csv"),
        ("perplexity", "accuracy", "next_sentence_accuracy"), ("--train.epochs=4",),
        start="scratch"),
    Job("question_answering", "answers in a text", "generated from BBC articles",
        "question_answering.yaml", QUESTIONS, ("exact_match", "f1")),
)  # fmt: skip
INTENT_COLUMN = "--data.label_column=intent"
DISTILLED = ("accuracy", "teacher.agreement")
STUDENTS = (
    Job("intent_small_longer", "intent, the 2-layer checkpoint, as long as a student",
        "clinc150, in scope", "intent.yaml", CLINC, ("accuracy",),
        (*IN_SCOPE, "--train.epochs=10", "--train.learning_rate=1e-3"), start="small"),
    Job("intent_distilled", "intent, the 2-layer checkpoint as a student", "clinc150, in scope",
        "distillation.yaml", CLINC, DISTILLED,
        (INTENT_COLUMN, "--train.learning_rate=1e-3"), start="small", teacher="intent",
        beside=("intent_small_longer", "without a teacher")),
    Job("intent_distilled_unlabelled", "the same, and unlabelled texts",
        "clinc150, in scope; atis without labels", "distillation.yaml", CLINC, DISTILLED,
        (INTENT_COLUMN, "--train.learning_rate=1e-3",
         f"--distill.unlabelled={json.dumps(UNLABELLED)}"),
        start="small", teacher="intent", beside=("intent_small_longer", "without a teacher")),
    Job("intent_distilled_layers", "intent, 3 of the teacher's 6 layers as a student",
        "clinc150, in scope", "distillation.yaml", CLINC, DISTILLED,
        (INTENT_COLUMN, "--distill.layers=3", "--train.epochs=4"), start="teacher",
        teacher="intent", beside=("intent", "its teacher")),
)  # fmt: skip
VECTORS = (
    Job("embedding", "sentence vectors", "sick", "embedding.yaml", SICK, ("pearson", "spearman"),
        peer="embedding", seeds=3),
)  # fmt: skip
LONG = (
    Job("long_documents", "news topics, windows over whole articles", "BBC articles",
        "long_documents.yaml", BBC, CLASSES, beside=("news", "truncated")),
)  # fmt: skip


def translations() -> list[Job]:
    """Three starts for each pair of languages, with the same options."""
    return [
        Job(f"translation_{name}_{start}", f"translation, {said} encoder", data,
            f"translation_{name}.yaml", files, ("bleu", "chrf"), (f"--task.encoder={start}",),
            beside=None if start == "random" else (f"translation_{name}_random", "random"))
        for name, data, files in TRANSLATIONS
        for start, said in STARTS.items()
    ]  # fmt: skip
