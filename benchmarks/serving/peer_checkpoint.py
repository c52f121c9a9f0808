"""A run's model for the peers: `python peer_checkpoint.py RUN FOLDER`.

Writes the same weights in HuggingFace layout, and as model.onnx by torch's exporter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def main(run: Path, folder: Path) -> None:
    """kbert writes the checkpoint; torch, in a process of its own, the ONNX file."""
    from kbert.finished_run import open_run
    from kbert.saving import save_checkpoint

    finished = open_run(run)
    experiment = finished.part("test").experiment
    save_checkpoint(
        finished.model(experiment),
        folder,
        tokenizer=experiment.task.tokenizer,
        labels=experiment.task.labels,
    )
    subprocess.run([sys.executable, __file__, str(folder)], check=True)


def write_onnx(folder: Path) -> None:
    """model.onnx beside model.safetensors, batch and length free."""
    os.environ["USE_TF"] = "0"
    import torch
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.ones((2, 8), dtype=torch.int64)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    torch.onnx.export(
        model,
        tuple(ids for _ in names),
        str(folder / "model.onnx"),
        input_names=names,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in names} | {"logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        write_onnx(Path(sys.argv[1]))
