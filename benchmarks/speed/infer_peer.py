"""Answers texts by ONNX Runtime or torch, in rounds: `python infer_peer.py SETTINGS`.

BertTokenizerFast is in front; a batch is padded to its longest text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from peer_models import in_int8, onnxruntime_model, torch_model  # noqa: E402
from rounds import answer_in_rounds  # noqa: E402
from transformers import BertTokenizerFast  # noqa: E402

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def main() -> None:
    """Strings in, logits out."""
    settings = json.loads(sys.argv[1])
    checkpoint, threads = Path(settings["checkpoint"]), settings["threads"]
    tokenizer = BertTokenizerFast.from_pretrained(checkpoint)
    precision = settings["precision"]
    if settings["by"] == "torch":
        infer = torch_model(checkpoint, threads, precision)
    elif precision == "int8":
        infer = onnxruntime_model(checkpoint, threads, in_int8(checkpoint))
    else:
        infer = onnxruntime_model(checkpoint, threads)

    def answer(texts: list[str]) -> np.ndarray:
        ids = tokenizer(
            texts, truncation=True, max_length=settings["max_length"], padding=True,
            return_tensors="np",
        )  # fmt: skip
        return infer({name: ids[name].astype(np.int64) for name in NAMES})

    answer_in_rounds(settings["file"], answer)


if __name__ == "__main__":
    main()
