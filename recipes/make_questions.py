"""Questions, contexts and answers to try question answering with, made from the BBC articles.

There is no SQuAD here: these questions are generated, not asked by people. One is a sentence of an
article in which a name, a year, an amount or a number is replaced by who, what, which year, how
much or how many, and so shares most of its words with its context, which is some sentences of the
article in a row. A model that is good at them finds the sentence and what it lacks; how well it
answers people's questions they do not tell.

    python recipes/make_questions.py runs/questions
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from demo import read_articles

WORDS = range(8, 36)  # of a sentence that becomes a question
ARTICLE_QUESTIONS = 4  # the most of an article
SENTENCE_END = re.compile(r"(?<=[.!?])[\"']? (?=[\"'A-Z£$])")
WORD = r"(?!(?:Mr|Ms|Mrs|Dr|Sir|I|He|She|It|They|We|The|But|And)\b)[A-Z][\w-]*\w"
NAME = rf"{WORD}(?: (?:of |de |van |von )?{WORD})*"
# what is replaced, the first that fits at its place
EXPRESSIONS = (
    ("who", re.compile(rf"(?<=\b(?:Mr|Ms|Dr) ){NAME}|(?<=\b(?:Mrs|Sir) ){NAME}")),
    ("who", re.compile(rf"{NAME}(?= (?:said|says|told|added|believes)\b)")),
    ("how much", re.compile(r"[£$€]\d[\d,.]*\d?(?:bn|m|k|tn)?\b|\d[\d.]*%")),
    ("which year", re.compile(r"\b(?:19|20)\d\d\b")),
    ("how many", re.compile(r"\b\d[\d,]*(?:\.\d+)?\b(?= [a-z]{3})")),
    ("what", re.compile(rf"(?<=[a-z,] ){NAME}")),
)


def main() -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs=3, default=(6000, 500, 500))
    parser.add_argument("--sentences", type=int, default=4, help="of a context")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    articles = [content for _, content in read_articles()]
    splits = split_questions(
        articles, options.sizes, sentences=options.sentences, seed=options.seed
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "validation", "test"), splits, strict=True):
        path = options.folder / f"{name}.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")
        print(f"{path}: {len(rows)} questions")


def split_questions(
    articles: Iterable[str], sizes: Sequence[int], *, sentences: int, seed: int
) -> list[list[dict]]:
    """Questions of each split, no article being in two of them.

    Args:
        articles: Title and paragraphs, a line each; repeated ones count once.
        sizes: Questions of each split; fewer where the articles are used up.
        sentences: Sentences of a context.
        seed: The same seed makes the same questions.
    """
    texts = {"\n".join(paragraphs(article)): None for article in articles}
    order = random.Random(seed).sample(sorted(texts), len(texts))
    remaining = iter(order)
    splits = []
    for size in reversed(sizes):  # the training split gets what is left
        rows: list[dict] = []
        while len(rows) < size and (text := next(remaining, None)) is not None:
            rows += article_questions(text, sentences=sentences, seed=f"{seed} {text}")
        splits.append(rows[:size])
    return splits[::-1]


def article_questions(text: str, *, sentences: int, seed: str) -> list[dict]:
    """question, context, answer and start of up to `ARTICLE_QUESTIONS` sentences of a text."""
    generator = random.Random(seed)
    parts = [part for line in text.split("\n") for part in split_sentences(line)]
    rows = []
    for number in generator.sample(range(len(parts)), len(parts)):
        found = list(expressions(parts[number]))
        if len(parts[number].split()) not in WORDS or not found:
            continue
        first = max(0, min(number - generator.randrange(sentences), len(parts) - sentences))
        before = "".join(f"{part} " for part in parts[first:number])
        context = before + " ".join(parts[number : first + sentences])
        start, end, word = generator.choice(found)
        rows.append(
            {
                "question": ask(parts[number], start, end, word),
                "context": context,
                "answer": parts[number][start:end],
                "start": len(before) + start,
            }
        )
    return rows[:ARTICLE_QUESTIONS]


def paragraphs(article: str) -> list[str]:
    """The lines of an article that hold text, without the title, white space made single."""
    return [" ".join(line.split()) for line in article.splitlines() if line.strip()][1:]


def split_sentences(paragraph: str) -> list[str]:
    """Sentences of a paragraph, by full stops that a capital letter follows."""
    return SENTENCE_END.sub(lambda end: f"{end[0].rstrip()}\n", paragraph).split("\n")


def expressions(sentence: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and question word of what can be asked for: what the sentence has but once."""
    taken = 0
    spans = []
    for word, pattern in EXPRESSIONS:
        spans += [(*match.span(), word) for match in pattern.finditer(sentence)]
    for start, end, word in sorted(spans, key=lambda span: span[:2]):
        if start >= taken and sentence.count(sentence[start:end]) == 1:
            yield start, end, word
        taken = max(taken, end)


def ask(sentence: str, start: int, end: int, word: str) -> str:
    """The sentence with a question word in the place of a span, and a question mark."""
    text = f"{sentence[:start]}{word}{sentence[end:]}".replace('"', "").strip("' ").rstrip(".!?'")
    return f"{text[:1].upper()}{text[1:]}?"


if __name__ == "__main__":
    main()
