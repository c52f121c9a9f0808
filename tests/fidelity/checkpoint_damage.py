"""What damaged, wrong and malicious checkpoints do: one error of one line, and nothing else."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from materials import VOCABULARY
from safetensors.torch import save_file

from fidelity.checkpoint_models import random_models, temporary
from fidelity.claims import Claim, Finding
from kbert import loading
from kbert.checkpoint_files import open_tensors
from kbert.encoder import build_encoder
from kbert.errors import InputError
from kbert.huggingface import HEADS
from kbert.preprocessing import WordPieceTokenizer
from kbert.saving import save_checkpoint


def damaged(path: Path, generator: np.random.Generator) -> Iterator[bytes]:
    """A file cut short at many places, and with one changed byte outside of its numbers."""
    content = path.read_bytes()
    for kept in np.linspace(0, len(content) - 1, 60).astype(int):
        yield content[:kept]
    is_structure = np.ones(len(content), bool)
    for start, end in number_ranges(path):
        is_structure[start:end] = False
    for place in generator.choice(np.flatnonzero(is_structure), 240):
        changed = bytearray(content)
        changed[place] ^= int(generator.integers(1, 256))
        yield bytes(changed)


def number_ranges(path: Path) -> list[tuple[int, int]]:
    """Where a file holds numbers of tensors without a checksum."""
    if path.suffix == ".bin":
        return []  # a zip archive has checksums
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            return [(8 + int.from_bytes(file.read(8), "little"), path.stat().st_size)]
    ranges: list[tuple[int, int]] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            start = item.id.get_offset()
            ranges.append((start, start + item.id.get_storage_size()))

    with h5py.File(path) as file:
        file.visititems(visit)
    return ranges


def damage() -> Finding:
    """Each damaged file is one error of one line or a whole load; the model is never between."""
    generator = np.random.default_rng(0)
    tally: collections.Counter[str] = collections.Counter()
    with temporary() as folder:
        next(random_models(1)).save_pretrained(folder / "bin", safe_serialization=False)
        encoder = loading.load_encoder(folder / "bin")
        intact = [np.asarray(variable) for variable in encoder.weights]
        save_checkpoint(encoder, folder / "ours", tokenizer=WordPieceTokenizer(VOCABULARY))
        (folder / "case").mkdir()
        for name in ("ours/model.safetensors", "ours/tf_model.h5", "bin/pytorch_model.bin"):
            case = folder / "case" / (folder / name).name
            for content in damaged(folder / name, generator):
                case.write_bytes(content)
                tally[f"{case.suffix[1:]} {outcome(encoder, case.parent, intact)}"] += 1
            case.unlink()
    # What HDF5 says of places and types in a file has no checksum.
    fine = [f"{name} {end}" for name in ("safetensors", "h5", "bin") for end in ("error", "intact")]
    fine += ["safetensors reported", "h5 reported", "h5 other numbers"]
    counts = ", ".join(f"{found} {number}" for found, number in sorted(tally.items()))
    return Finding(set(tally) <= set(fine) and sum(tally.values()) == 900, counts)


def outcome(encoder: Any, folder: Path, intact: list[np.ndarray]) -> str:
    """What a load does to an encoder whose weights are all the number 2."""
    for variable in encoder.weights:
        variable.assign(np.full(variable.shape, 2, variable.dtype))
    try:
        report = loading.load_checkpoint_weights(encoder, folder)
    except InputError as error:
        changed = any(np.any(np.asarray(variable) != 2) for variable in encoder.weights)
        return "half-loaded" if changed else "error" if "\n" not in str(error) else "long error"
    except Exception as error:
        return type(error).__name__
    if report.missing or report.unexpected:
        return "reported"
    pairs = zip(encoder.weights, intact, strict=True)
    is_intact = all(
        np.array_equal(variable, array) for variable, array in pairs if array.dtype.kind == "f"
    )
    return "intact" if is_intact else "other numbers"


def wrong_checkpoints() -> Finding:
    """Checkpoints that are intact and not this model's: another architecture, wrong shapes."""
    wrong = total = 0
    for seed, model in enumerate(random_models(2)):
        with temporary() as folder:
            model.save_pretrained(folder)
            config = json.loads((folder / "config.json").read_text())
            tensors = {name: it.clone() for name, it in model.state_dict().items()}
            encoder = build_encoder(loading.read_encoder_config(folder))
            for content in wrong_configs(config):
                (folder / "config.json").write_text(json.dumps(content))
                wrong += not is_one_error(lambda: loading.load_model(folder))
                total += 1
            (folder / "config.json").write_text(json.dumps(config))
            names = [name for name in tensors if "bert." in name or seed % len(HEADS) == 0]
            for name in names:
                shape = tensors[name].shape
                grown = {**tensors, name: torch.zeros(*shape[:-1], shape[-1] + 1)}
                save_file(grown, folder / "model.safetensors")
                wrong += outcome(encoder, folder, []) != "error"
                total += 1
            renamed = {f"roberta.{name}": tensor for name, tensor in tensors.items()}
            save_file(renamed, folder / "model.safetensors")
            wrong += outcome(encoder, folder, []) != "error"
            total += 1
    held = wrong == 0 < total
    return Finding(held, f"{total - wrong:,} of {total:,} are one error, the model as it was")


def wrong_configs(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for values in (
        {"model_type": "roberta"},
        {"model_type": None},
        {"is_decoder": True},
        {"position_embedding_type": "relative_key"},
        {"hidden_act": "mish"},
        {"hidden_size": config["hidden_size"] + config["num_attention_heads"]},
        {"num_hidden_layers": config["num_hidden_layers"] + 1},
        {"vocab_size": config["vocab_size"] + 1},
        {"max_position_embeddings": config["max_position_embeddings"] + 1},
        {"intermediate_size": "large"},
        {"architectures": ["BertLMHeadModel"]},
    ):
        yield {**config, **values}


def is_one_error(load: Callable[[], Any]) -> bool:
    try:
        load()
    except InputError as error:
        return "\n" not in str(error)
    return False


class Calls:
    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def pickles() -> Finding:
    """Pickles that would make a file, in both of torch's layouts and all protocols."""
    made = refused = total = 0
    with temporary() as folder:
        sign, path = folder / "sign", folder / "pytorch_model.bin"
        for call in (
            Calls(os.system, f"touch {sign}"),
            Calls(eval, f"open({str(sign)!r}, 'w')"),
            Calls(exec, f"open({str(sign)!r}, 'w')"),
            Calls(open, str(sign), "w"),
            Calls(subprocess.Popen, ["touch", str(sign)]),
            Calls(Path.touch, sign),
            Calls(os.mkdir, str(sign)),
            {"weight": [{"deep": Calls(os.mkdir, str(sign))}]},
        ):
            for protocol in range(6):
                for is_zip in (True, False):
                    path.write_bytes(torch_file(pickle.dumps(call, protocol), is_zip=is_zip))
                    refused += is_one_error(lambda: open_tensors(path))
                    made += sign.exists()
                    total += 1
    held = made == 0 and refused == total > 0
    return Finding(held, f"{refused} of {total} refused, {made} ran")


def torch_file(pickled: bytes, *, is_zip: bool) -> bytes:
    file = io.BytesIO()
    if is_zip:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
    else:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(value, file, 2)
        file.write(pickled)
    return file.getvalue()


DAMAGE: list[Claim] = [
    Claim("damaged files, and the model after them", damage),
    Claim("checkpoints of other models", wrong_checkpoints),
    Claim("pickles that are programs", pickles),
]
