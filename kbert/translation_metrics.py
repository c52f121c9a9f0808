"""BLEU and chrF of translations, by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sacrebleu

CHINESE = (("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"))
CHINESE_SHARE = 0.3  # of all characters but spaces, from which on a text is Chinese


def translation_figures(
    translations: Sequence[str], references: Sequence[str], *, lowercase: bool = False
) -> dict[str, Any]:
    """Corpus BLEU and chrF, and sacrebleu's signatures, which say how they are computed.

    Args:
        translations: What was written.
        references: What should have been, one a translation.
        lowercase: Whether to compare without regard to case.

    Returns:
        bleu and chrf from 0 to 100, bleu_signature and chrf_signature.
    """
    tokenizer = "zh" if chinese_share(references) >= CHINESE_SHARE else "13a"
    bleu = sacrebleu.BLEU(tokenize=tokenizer, lowercase=lowercase)
    chrf = sacrebleu.CHRF(lowercase=lowercase)
    figures: dict[str, Any] = {}
    for name, metric in (("bleu", bleu), ("chrf", chrf)):
        figures[name] = metric.corpus_score(list(translations), [list(references)]).score
        figures[f"{name}_signature"] = str(metric.get_signature())
    return figures


def chinese_share(texts: Sequence[str]) -> float:
    """Share of Chinese characters among those that are no spaces."""
    characters = "".join("".join(text.split()) for text in texts)
    found = sum(any(first <= c <= last for first, last in CHINESE) for c in characters)
    return found / max(1, len(characters))
