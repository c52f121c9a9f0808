"""Mutated files for the readers of files: what `make fuzz-files` runs, ten minutes a reader.

Half of the time hypothesis takes good files and cuts, flips, splices and repeats them, writes other
numbers into their headers and other values into their JSON; the other half atheris changes bytes
wherever that leads kbert's code to where it has not been. Whatever comes of it, a reader may only
raise an InputError of one line, or read: twice the same, in at most 10 s and 2 GB. Each is fuzzed
in a process of its own; the file it reads is on disk before, so that one that kills the process is
there to be looked at. At last a line of 10 GB, on disk in full, is given to the readers of texts.

Exit status: 0 when all that holds, 1 when not.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np  # noqa: E402
from hostile import CEILING, MEBIBYTES, SECONDS, _memory  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

ENGINES = ("hypothesis", "atheris")
EXAMPLES = 500  # a turn of hypothesis
LONGEST = 50_000  # bytes of a file that atheris makes
FOLLOWED = (
    "pickletools",
    "kbert.errors",
    "kbert.foreign_files",
    "kbert.torch_files",
    "kbert.checkpoint_files",
    "kbert.config",
    "kbert.parquet_files",
    "kbert.text_files",
    "kbert.data",
    "kbert.huggingface",
    "kbert.tokenizer_files",
    "kbert.certificate",
)
"""Modules of which atheris learns what a file makes them do."""
KEPT = Path(tempfile.gettempdir()) / "kbert-fuzz-failures"
"""Where a file stays on which a reader failed."""
PATIENCE = 60  # seconds without news until a process is taken to hang
LARGE = 10 << 30

numbers = st.sampled_from(
    [0, 1, 2, 7, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1,
     2**63, 2**64 - 1]
) | st.integers(0, 2**64 - 1)  # fmt: skip
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**9, 10**400, "\ud800", "\0", "../..", "[MASK]", "bert", "x" * 2000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


# Mutations


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One of some files, changed in one to four places."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        content = draw(changed(content))
    return bytes(content)


@st.composite
def changed(draw: st.DrawFn, content: bytearray) -> bytearray:
    """A file with one change; half of the changes are in its first or last 500 bytes."""
    size = len(content)
    ends = st.integers(0, 500).flatmap(lambda of: st.sampled_from([of, max(0, size - of)]))
    place = min(size, draw(ends | st.integers(0, size)))
    kind = draw(st.sampled_from(["cut", "flip", "number", "bytes", "splice", "repeat", "delete"]))
    if kind == "cut":
        return content[:place]
    if kind == "flip" and place < size:
        content[place] ^= draw(st.integers(1, 255))
    elif kind == "number":  # a size that lies
        width = draw(st.sampled_from([1, 2, 4, 8]))
        order = draw(st.sampled_from(["little", "big"]))
        value = (draw(numbers) % (1 << (8 * width))).to_bytes(width, order)
        content[place : place + width] = value
    elif kind == "bytes":
        content[place:place] = draw(st.binary(max_size=20))
    elif kind == "delete":
        del content[place : place + draw(st.integers(1, 50))]
    else:
        start = draw(st.integers(0, size))
        part = content[start : start + draw(st.integers(1, 200))]
        many = draw(st.integers(1, 2000)) if kind == "repeat" else 1
        content[place:place] = part * many
    return content


@st.composite
def other_values(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """JSON of which one to three values, however deep, are others, or are gone."""
    content = json.loads(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        place = content
        while True:
            if isinstance(place, list):
                keys: list[Any] = list(range(len(place)))
            else:
                keys = list(place)
            if not keys:
                break
            key = draw(st.sampled_from(keys[:200]))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.integers(0, 9)) == 0:
                del place[key]
            else:
                place[key] = draw(json_values)
            break
    return json.dumps(content).encode("utf-8", "surrogatepass")


# Readers: what is read, by what


@dataclass(frozen=True)
class Reader:
    """What reads a kind of file."""

    file: str
    """Its name in the folder that `read` is given."""
    seeds: Callable[[Path], list[bytes]]
    """Good files, from a good checkpoint."""
    read: Callable[[Path], Any]
    """Reads the folder; what it gives can be compared."""
    is_json: bool = False


def tensors(folder: Path) -> dict[str, bytes]:
    """All tensors of the one weight file of a folder."""
    from kbert.checkpoint_files import find_weights, open_tensors

    found = open_tensors(find_weights(folder))
    arrays = {}
    for name in found:
        array = found[name]
        assert array.shape == found.shape(name) and array.dtype.kind in "fiub", name
        arrays[name] = array.tobytes()
    return arrays


def config(folder: Path) -> Any:
    from kbert import huggingface
    from kbert.errors import InputError
    from kbert.loading import read_config, read_encoder_config

    content = read_config(folder)
    found: list[Any] = [read_encoder_config(folder)]
    for read in (huggingface.labels, huggingface.num_labels, huggingface.head):
        try:
            found.append(read(content))
        except InputError as error:
            _require_line(error)
    return found


def tokenizer(folder: Path) -> Any:
    import tensorflow as tf

    from kbert.preprocessing import tokenizer_from_files

    made = tokenizer_from_files(folder)
    text = tf.constant(["the cat sat on [MASK] \u597d."])
    return made.get_config(), made(text).to_list()


def texts(folder: Path) -> Any:
    """The one file of texts of a folder, by all that reads such files."""
    from kbert.config import DataOptions
    from kbert.data import Columns, read_dataset
    from kbert.text_files import LARGEST_ROW, count_rows, open_texts, read_rows, require_file

    (path,) = folder.iterdir()
    label = None if path.suffix == ".txt" else "label"
    dataset = read_dataset(DataOptions(train=str(path)), Columns(("text",), label), seed=0)
    require_file(path, "--input")
    source = open_texts(path, ("text",), encoding="utf-8")
    rows = count_rows(source)
    found = read_rows(source, np.arange(rows), ("text",))["text"]
    assert rows == len(found) == sum(len(split.rows) for split in dataset.splits.values())
    assert all(len(text.encode()) <= 4 * LARGEST_ROW and "\0" not in text for text in found)
    return dataset.labels, found


def certificate(folder: Path) -> Any:
    from kbert.certificate import read_certificate

    found = read_certificate(folder / "parity.json")
    return found.inputs, found.problem()


def options(folder: Path) -> Any:
    from kbert.config import as_dict, parse

    return as_dict(parse(["--config", str(folder / "config.yaml")]))


def of_checkpoint(*names: str) -> Callable[[Path], list[bytes]]:
    return lambda checkpoint: [(checkpoint / name).read_bytes() for name in names]


def of_case(spoil: Callable[[Path], Any], name: str) -> Callable[[Path], list[bytes]]:
    """A file that one of `hostile_files` writes into a copy of the checkpoint."""

    def seeds(checkpoint: Path) -> list[bytes]:
        with tempfile.TemporaryDirectory() as work:
            folder = shutil.copytree(checkpoint, Path(work) / "folder")
            spoil(folder)
            return [(folder / name).read_bytes()]

    return seeds


def h5_seeds(checkpoint: Path) -> list[bytes]:
    """As h5py writes it, as Keras does, and with what has no place in it."""
    import h5py

    from kbert.checkpoint_files import open_tensors, write_h5

    arrays = dict(open_tensors(checkpoint / "model.safetensors"))
    found = []
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "tf_model.h5"
        write_h5(path, {f"bert/{name}": array for name, array in arrays.items()})
        found.append(path.read_bytes())
        with h5py.File(path, "w", libver="latest") as file:
            for name, array in arrays.items():
                file[name.replace(".", "/")] = array
            file["soft"] = h5py.SoftLink("/embeddings")
            file["text"] = ["a", "b"]
        found.append(path.read_bytes())
        with h5py.File(path, "w") as file:
            for name, array in list(arrays.items())[:4]:
                file.create_dataset(name, data=array, chunks=True, compression="gzip")
            file.create_dataset("e", (2,), "f4", external=[("/etc/hostname", 0, 8)])
        found.append(path.read_bytes())
    return found


def torch_legacy_seeds(checkpoint: Path) -> list[bytes]:
    import torch

    from kbert.checkpoint_files import open_tensors

    arrays = dict(open_tensors(checkpoint / "model.safetensors"))
    kept = {name: torch.tensor(array) for name, array in list(arrays.items())[:6]}
    kept["view"] = next(iter(kept.values()))[1:3]
    found = []
    for is_zip in (True, False):
        file = io.BytesIO()
        torch.save(kept, file, _use_new_zipfile_serialization=is_zip)
        found.append(file.getvalue())
    return found


CSV = (
    'text,label,other\na cat,x,1\n"a ""dog"", or\ntwo",y,2\n\u597d\u4eba,x,\na,y,4\n'
    + "the cat sat,x,5\nthe dog,y,6\n" * 20
)


def csv_seeds(_: Path) -> list[bytes]:
    return [CSV.encode(), CSV.replace("\n", "\r\n").encode("utf-8-sig")]


def tsv_seeds(_: Path) -> list[bytes]:
    rows = CSV.replace(",", "\t")
    return [rows.encode(), rows.replace('"', "").replace("or\n", "or ").encode()]


def jsonl_seeds(_: Path) -> list[bytes]:
    records = [{"text": "a \u597d cat", "label": "xy"[n % 2], "other": [n, {}]} for n in range(9)]
    return ["".join(json.dumps(of, ensure_ascii=n % 2) + "\n" for of in records).encode()
            for n in range(2)]  # fmt: skip


def parquet_seeds(_: Path) -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table({"text": ["a cat", "a dog", "a", "\u597d"] * 40, "label": ["x", "y"] * 80,
                      "other": [[1], []] * 80})  # fmt: skip
    found = []
    for options in (
        {},
        {"compression": "none", "use_dictionary": False},
        {"compression": "zstd", "row_group_size": 30, "data_page_version": "2.0"},
        {"compression": "gzip", "write_page_checksum": True, "store_schema": False},
    ):
        file = io.BytesIO()
        pa.parquet.write_table(table, file, **options)
        found.append(file.getvalue())
    return found


def txt_seeds(_: Path) -> list[bytes]:
    return ["a cat\n\n\u597d\u4eba\r\nthe dog".encode() + b"\nrow" * 20]


def certificate_seeds(_: Path) -> list[bytes]:
    from kbert.answers import Answers
    from kbert.certificate import Certificate, write_certificate

    ids = {"token_ids": [[2, 3], [2, 3]], "segment_ids": [[0, 0], [0, 0]]}
    outputs = {"probabilities": np.float32([[0.25, 0.75], [0.5, 0.5]]),
               "label": np.array(["b", "a"], object)}  # fmt: skip
    answers = dict.fromkeys(("python", "saved_model"), Answers(ids, outputs))
    made = Certificate("serving_default", 1e-5, {"a": "1"}, {"text": ["x", "y"]},
                       {"label": "probabilities"}, answers, "none")  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        write_certificate(Path(work) / "parity.json", made)
        return [(Path(work) / "parity.json").read_bytes()]


def options_seeds(_: Path) -> list[bytes]:
    from kbert.config import as_yaml, parse

    words = ["--data.train", "a.csv", "--output", "out", "--model.checkpoint", "bert"]
    space = ["--search.space", '{"learning_rate": {"min": 1e-5, "max": 1e-4, "log": true}}']
    tasks = ([], ["--task", "masked_lm"], ["--search.tuner", "random", *space])
    return [as_yaml(parse([*words, *of])).encode() for of in tasks]


def _of_hostile_files() -> dict[str, Callable[[Path], list[bytes]]]:
    from hostile_files.tokenizers import tokenizer_json

    added = [{"content": "[X]", "id": 19, "special": True}]
    return {"tokenizer.json": of_case(tokenizer_json(added_tokens=added), "tokenizer.json")}


READERS: dict[str, Reader] = {
    "safetensors": Reader("model.safetensors", of_checkpoint("model.safetensors"), tensors),
    "h5": Reader("tf_model.h5", h5_seeds, tensors),
    "torch": Reader("pytorch_model.bin", torch_legacy_seeds, tensors),
    "config.json": Reader("config.json", of_checkpoint("config.json"), config),
    "config.json, values": Reader("config.json", of_checkpoint("config.json"), config, True),
    "vocab.txt": Reader("vocab.txt", of_checkpoint("vocab.txt"), tokenizer),
    "tokenizer.json": Reader(
        "tokenizer.json", _of_hostile_files()["tokenizer.json"], tokenizer, True
    ),
    "csv": Reader("train.csv", csv_seeds, texts),
    "tsv": Reader("train.tsv", tsv_seeds, texts),
    "jsonl": Reader("train.jsonl", jsonl_seeds, texts),
    "parquet": Reader("train.parquet", parquet_seeds, texts),
    "txt": Reader("train.txt", txt_seeds, texts),
    "parity.json": Reader("parity.json", certificate_seeds, certificate, True),
    "config.yaml": Reader("config.yaml", options_seeds, options),
}


# Running


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="of each reader (default: 10)")
    parser.add_argument("--only", default="", help="readers whose names hold this")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)),
                        help="processes at a time (default: one a core)")  # fmt: skip
    parser.add_argument("--child", nargs=4, metavar="WORD", help="internal")
    options = parser.parse_args()
    if options.child:
        engine, name, folder, seconds = options.child
        return _child(engine, READERS[name], Path(folder), float(seconds))
    from materials import write_tiny_checkpoint

    engines = ENGINES if importlib.util.find_spec("atheris") else ENGINES[:1]
    print(f"fuzzing by {' and '.join(engines)}, {options.minutes:g} minutes a reader", flush=True)
    seconds = options.minutes * 60 / len(engines)
    with tempfile.TemporaryDirectory(prefix="kbert-fuzz-") as folder:
        work = Path(folder)
        (work / "checkpoint").mkdir()
        write_tiny_checkpoint(work / "checkpoint")
        turns = [(engine, name) for name in READERS if options.only in name for engine in engines]
        with ThreadPoolExecutor(options.jobs) as pool:
            held = list(pool.map(lambda turn: _fuzz(*turn, work, seconds), turns))
        if not options.only:
            held.append(_read_large(work))
    return 0 if all(held) else 1


def _fuzz(engine: str, name: str, work: Path, seconds: float) -> bool:
    """Fuzz a reader, in one process after the other if they die; whether all held."""
    ends, counts, problems = time.monotonic() + seconds, collections.Counter[str](), []
    while (left := ends - time.monotonic()) > 0 and len(problems) < 3:
        folder = Path(tempfile.mkdtemp(dir=work))
        command = [sys.executable, __file__, "--child", engine, name, str(folder), str(left)]
        try:
            process = subprocess.run(
                command, capture_output=True, text=True, timeout=left + PATIENCE
            )
            status, told = process.returncode, process.stdout.strip().splitlines()
            told = told or process.stderr.strip().splitlines()[-1:]
        except subprocess.TimeoutExpired as error:
            at = (error.stderr or b"").decode(errors="replace").split("most recent call first")
            status, told = "hangs", [f"still at work {PATIENCE} s after its time{at[-1][:1500]}"]
        counts.update(json.loads((folder / "counts.json").read_text()))
        if status != 0:
            KEPT.mkdir(parents=True, exist_ok=True)
            kept = Path(tempfile.mkdtemp(dir=KEPT)) / READERS[name].file
            shutil.copy(folder / "last", kept)
            problem = told[-1] if told else f"the process died ({status})"
            problems.append(f"  FAILED {problem}; the file is kept: {kept}")
        shutil.rmtree(folder)
    found = ", ".join(f"{what} {number:,}" for what, number in sorted(counts.items()))
    lines = [f"{name:<22}{engine:<12}{counts.total():>10,} files: {found}", *problems]
    print("\n".join(lines), flush=True)
    return not problems


def _child(engine: str, reader: Reader, folder: Path, seconds: float) -> int:
    """Fuzz until the time is over; the last line on stdout tells what went wrong."""
    import faulthandler
    import resource

    import tensorflow  # noqa: F401  (before atheris looks at what is imported)

    (folder / "counts.json").write_text("{}")
    (folder / "last").touch()
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=list(FOLLOWED)):
            for name in FOLLOWED:
                importlib.import_module(name)
    seeds = reader.seeds(folder.parent / "checkpoint")
    case = folder / "case"
    case.mkdir()
    assert _read(reader, case, seeds[0]) is not None, "a good file is refused"
    resource.setrlimit(resource.RLIMIT_DATA, (_memory("VmData") + CEILING,) * 2)
    counts: collections.Counter[str] = collections.Counter()
    faulthandler.dump_traceback_later(seconds + PATIENCE / 2)  # where it hangs, on stderr
    told = time.monotonic()

    def check(content: bytes) -> None:
        nonlocal told
        (folder / "last").write_bytes(content)
        Path("/proc/self/clear_refs").write_text("5")
        base, began = _memory("VmRSS"), time.monotonic()
        first = _read(reader, case, content)
        taken = (_memory("VmHWM") - base) / 2**20
        assert taken < MEBIBYTES, f"{taken:.0f} MiB of memory"
        assert time.monotonic() - began < SECONDS, "over 10 s"
        assert first is None or first == _read(reader, case, content), "twice is not the same"
        counts["refused" if first is None else "read"] += 1
        if time.monotonic() - told > 1:
            (folder / "counts.json").write_text(json.dumps(counts))
            told = time.monotonic()

    try:
        if engine == "atheris":
            _by_atheris(check, folder, seeds, seconds)
        _by_hypothesis(check, reader, seeds, seconds)
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
        return 1
    finally:
        (folder / "counts.json").write_text(json.dumps(counts))
    return 0


def _by_hypothesis(
    check: Callable[[bytes], None], reader: Reader, seeds: list[bytes], seconds: float
) -> None:
    strategy = mutated(seeds)
    if reader.is_json:
        strategy = other_values(seeds) | mutated(seeds)
    ends = time.monotonic() + seconds

    def check_in_time(content: bytes) -> None:
        if time.monotonic() < ends:  # a turn of a slow reader takes minutes
            check(content)

    turn = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(check_in_time))
    while time.monotonic() < ends:
        turn()


def _by_atheris(
    check: Callable[[bytes], None], folder: Path, seeds: list[bytes], seconds: float
) -> NoReturn:
    """Ends the process itself, with another status than 0 after an exception."""
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    words = [f"-max_total_time={max(1, int(seconds))}", f"-max_len={LONGEST}", "-rss_limit_mb=0"]
    words += ["-timeout=60", "-verbosity=0", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *words, str(corpus)], check)
    atheris.Fuzz()
    raise AssertionError("atheris has come back")


def _read(reader: Reader, case: Path, content: bytes) -> str | None:
    """What is read of a file, as a text that can be compared; None where it is refused."""
    from kbert.errors import InputError

    (case / reader.file).write_bytes(content)
    if reader.read is tokenizer:
        (case / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    try:
        return repr(reader.read(case))
    except InputError as error:
        _require_line(error)
        return None


def _require_line(error: Exception) -> None:
    assert str(error).isprintable() and len(str(error)) <= 2000, f"no line: {error!r}"


def _read_large(work: Path) -> bool:
    """Read a line of 10 GB as each kind of text; whether it is refused at once."""
    from kbert.errors import InputError

    if shutil.disk_usage(work).free < 2 * LARGE:
        print("a line of 10 GB: there is no room for it on the disk")
        return False
    line = work / "line"
    with line.open("wb") as file:
        for _ in range(LARGE >> 24):
            file.write(b"x" * (1 << 24))
    holds = True
    for name in ("train.csv", "train.tsv", "train.jsonl", "train.txt"):
        folder = work / name.replace(".", "-")
        folder.mkdir()
        os.link(line, folder / name)
        Path("/proc/self/clear_refs").write_text("5")
        base, began, found = _memory("VmRSS"), time.monotonic(), "READ"
        try:
            texts(folder)
        except InputError as error:
            found = str(error).replace(f"{folder}/", "")
        seconds, taken = time.monotonic() - began, (_memory("VmHWM") - base) / 2**20
        holds &= found != "READ" and seconds < SECONDS and taken < MEBIBYTES
        print(f"a line of 10 GB, {name}: {seconds:.1f} s, {taken:.0f} MiB: {found}", flush=True)
    return holds


if __name__ == "__main__":
    sys.exit(main())
