"""Claims about checkpoints: every format is read, and what is written others read."""

from __future__ import annotations

import collections
import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from conftest import SHARED, VOCABULARY
from safetensors.torch import save_file

import kbert
from fidelity.checkpoint_damage import DAMAGE
from fidelity.checkpoint_models import (
    State,
    different,
    random_models,
    real_folders,
    real_models,
    temporary,
)
from fidelity.claims import Claim, Finding, counted
from kbert import loading
from kbert.checkpoint_files import WEIGHT_FILES, open_tensors
from kbert.huggingface import named_tensors
from kbert.preprocessing import WordPieceTokenizer
from kbert.saving import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]

transformers.logging.set_verbosity_error()
logging.getLogger("kbert").setLevel(logging.ERROR)


# Reading


def written_by(model: Any, folder: Path) -> Iterator[tuple[Path, State]]:
    """Every form of a model's checkpoint, one after the other, with the numbers it holds."""
    state, small = model.state_dict(), f"{max(model.num_parameters() // 800, 1)}KB"
    forms: list[dict[str, Any]] = [
        {"safe_serialization": True},
        {"safe_serialization": True, "max_shard_size": small},
        {"safe_serialization": False},
        {"safe_serialization": False, "max_shard_size": small},
    ]
    for number, options in enumerate(forms):
        model.save_pretrained(folder / str(number), **options)
        yield folder / str(number), state
    tensorflow = getattr(transformers, f"TF{type(model).__name__}").from_pretrained(
        folder / "2", from_pt=True
    )
    for number, options in enumerate(forms[2:]):
        tensorflow.save_pretrained(folder / f"h{number}", **options)
        yield folder / f"h{number}", state
    yield from rewritten(model, folder / "named")


def rewritten(model: Any, folder: Path) -> Iterator[tuple[Path, State]]:
    """Older names, with and without the prefix, half precision, and torch's old file."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = folder / "model.safetensors"
    roots = ("embeddings.", "encoder.", "pooler.")
    bare = {name.removeprefix("bert."): tensor for name, tensor in state.items()}
    full = {f"bert.{name}" if name.startswith(roots) else name: bare[name] for name in bare}
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in full.items()
    }
    for named in (bare, full, old):
        save_file(named, path)
        yield folder, state
    for dtype in (torch.float16, torch.bfloat16):
        half = {name: tensor.to(dtype) for name, tensor in state.items()}
        save_file(half, path)
        yield folder, half
    path.unlink()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        half = {name: tensor.to(dtype) for name, tensor in state.items()}
        torch.save(half, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        yield folder, half


def reads(models: Iterator[Any]) -> Finding:
    wrong = total = checkpoints = 0
    kinds = collections.Counter()
    for model in models:
        with temporary() as folder:
            for path, expected in written_by(model, folder):
                kinds.update(name for name in WEIGHT_FILES if (path / name).exists())
                received = named_tensors(loading.load_model(path))
                wrong, total = np.add((wrong, total), different(expected, received)).tolist()
                checkpoints += 1
    assert set(kinds) == set(WEIGHT_FILES)  # whole and in shards
    return counted(wrong, total, f"numbers of {checkpoints} checkpoints")


# Round trips


def round_trips(models: Iterator[Any]) -> Finding:
    """HuggingFace -> kbert -> HuggingFace by both files, with the keys transformers reports."""
    wrong = total = keys = trips = 0
    for model in models:
        tf_class = getattr(transformers, f"TF{type(model).__name__}")
        with temporary() as folder:
            model.save_pretrained(folder / "torch")
            model.save_pretrained(folder / "bin", safe_serialization=False)
            tf_model = tf_class.from_pretrained(folder / "bin", from_pt=True)
            tf_model.save_pretrained(folder / "tf")
            for source in ("torch", "tf"):
                target = folder / f"from_{source}"
                resave(folder / source, target, model.config.vocab_size)
                for original, options in ((model, {}), (tf_model, {"use_safetensors": False})):
                    copy, info = type(original).from_pretrained(
                        target, output_loading_info=True, **options
                    )
                    keys += sum(map(len, info.values()))
                    found = different(state_of(original), arrays_of(copy))
                    wrong, total = np.add((wrong, total), found).tolist()
                    trips += 1
    return Finding(
        wrong == keys == 0 and total > 0,
        f"{wrong:,} of {total:,} numbers differ in {trips} trips, "
        f"{keys} missing or unexpected keys",
    )


def resave(source: Path, target: Path, vocabulary_size: int) -> None:
    """Loads with kbert and saves with kbert, beside some tokeniser."""
    words = [f"word{number}" for number in range(vocabulary_size - 5)]
    tokenizer = WordPieceTokenizer([*VOCABULARY[:5], *words])
    save_checkpoint(loading.load_model(source), target, tokenizer=tokenizer)


def state_of(model: Any) -> State:
    return {name: torch.tensor(array) for name, array in arrays_of(model).items()}


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    """The numbers of a torch or a TensorFlow model, which begins its names with its own."""
    if isinstance(model, torch.nn.Module):
        return {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return {weight.name.partition("/")[2]: weight.numpy() for weight in model.weights}


# The tokeniser


def texts() -> list[str]:
    """2,000 random strings of many scripts, and real ones where the data sets are."""
    generator = np.random.default_rng(0)
    blocks = [(32, 127), (160, 880), (0x400, 0x530), (0x4E00, 0x9FFF), (0x3040, 0x30FF)]
    found = []
    for _ in range(2000):
        parts = []
        for _ in range(int(generator.integers(0, 12))):
            first, last = blocks[int(generator.integers(len(blocks)))]
            parts.append("".join(map(chr, generator.integers(first, last, generator.integers(9)))))
        found.append(" ".join(parts))
    for path in (SHARED / "data").glob("*/test.[ct]sv"):
        found += path.read_text(encoding="utf-8").splitlines()[1:501]
    return found


def tokenizers_agree() -> Finding:
    """AutoTokenizer of our folder, AutoTokenizer of the original, and ours of our folder."""
    wrong = total = 0
    lines = texts()
    for source in real_folders():
        ours = kbert.load_tokenizer(source)
        with temporary() as folder:
            encoder = loading.load_encoder(source)
            save_checkpoint(encoder, folder / "a", tokenizer=ours, formats=["h5"])
            copies = [transformers.AutoTokenizer.from_pretrained(folder / "a")]
            copies.append(transformers.BertTokenizerFast.from_pretrained(folder / "a"))
            again = kbert.load_tokenizer(folder / "a")(np.array(lines)).to_list()
        original = transformers.AutoTokenizer.from_pretrained(source)
        expected = original(lines, add_special_tokens=False)["input_ids"]
        for copy in copies:
            received = copy(lines, add_special_tokens=False)["input_ids"]
            wrong += sum(a != b for a, b in zip(received, expected, strict=True))
            assert copy.special_tokens_map == original.special_tokens_map
            assert copy.backend_tokenizer.normalizer.__getstate__() == (
                original.backend_tokenizer.normalizer.__getstate__()
            )
        wrong += sum(a != b for a, b in zip(again, expected, strict=True))
        total += 3 * len(lines)
    return counted(wrong, total, "texts")


# transformers 5

SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
import transformers
from kbert.huggingface import named_tensors
from kbert.loading import load_model, load_tokenizer
keys = 0
for folder in map(Path, sys.argv[2:]):
    config = json.loads((folder / "config.json").read_text())
    model, info = getattr(transformers, config["architectures"][0]).from_pretrained(
        folder, output_loading_info=True
    )
    keys += sum(len(found) for found in info.values())
    model.save_pretrained(folder / "copy")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder / "copy")
    texts = json.loads(Path(sys.argv[1]).read_text())
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ours = load_tokenizer(folder)(np.array(texts)).to_list()
    again = load_tokenizer(folder / "copy")(np.array(texts)).to_list()
    (folder / "ids.json").write_text(json.dumps([ids, ours, again]))
    np.savez(folder / "ours.npz", **named_tensors(load_model(folder)))
print(json.dumps([transformers.__version__, keys]))
"""


def transformers_5() -> Finding:
    default = ROOT / ".venv-transformers5" / "bin" / "python"
    python = os.environ.get("KBERT_TRANSFORMERS5_PYTHON", str(default))
    wrong = total = ids_wrong = 0
    lines = texts()[:2500]
    with temporary() as folder:
        (folder / "texts.json").write_text(json.dumps(lines))
        saved = {}
        for number, source in enumerate([*real_folders(), *some_saved(folder)]):
            model, tokenizer = loading.load_model(source), kbert.load_tokenizer(source)
            target = folder / f"model{number}"
            save_checkpoint(model, target, tokenizer=tokenizer, formats=["safetensors"])
            saved[target] = tokenizer
        output = subprocess.run(
            [python, "-c", SCRIPT, folder / "texts.json", *saved],
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        version, keys = json.loads(output.splitlines()[-1])
        for target, tokenizer in saved.items():
            ours = dict(open_tensors(target / "model.safetensors"))
            expected = {name: torch.tensor(array) for name, array in ours.items()}
            with np.load(target / "ours.npz") as loaded:
                for arrays in (dict(loaded), open_tensors(target / "copy/model.safetensors")):
                    found = different(expected, dict(arrays))
                    wrong, total = np.add((wrong, total), found).tolist()
            ids = tokenizer(np.array(lines)).to_list()
            for received in json.loads((target / "ids.json").read_text()):
                ids_wrong += sum(a != b for a, b in zip(received, ids, strict=True))
    assert version.startswith("5.")
    return Finding(
        wrong == keys == ids_wrong == 0 and total > 0,
        f"transformers {version}: {wrong:,} of {total:,} numbers and {ids_wrong} of "
        f"{3 * len(saved) * len(lines):,} texts differ, {keys} missing or unexpected keys",
    )


def some_saved(folder: Path) -> Iterator[Path]:
    """A checkpoint of each architecture, with a tokeniser."""
    for model in random_models(1):
        target = folder / type(model).__name__
        model.save_pretrained(target)
        (target / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
        yield target


CLAIMS: list[Claim] = [
    Claim("real checkpoints, every file format, read", lambda: reads(real_models())),
    Claim("random checkpoints of every head and format, read", lambda: reads(random_models(3))),
    Claim("real checkpoints to kbert and back", lambda: round_trips(real_models())),
    Claim("random checkpoints to kbert and back", lambda: round_trips(random_models(4))),
    Claim("tokenisers of saved folders", tokenizers_agree),
    Claim("saved folders under transformers 5", transformers_5),
    *DAMAGE,
]
