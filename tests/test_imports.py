"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUND = {"command", "errors", "foreign_files", "whole_files"}
PREPROCESSING = {"assets", "config", "preprocessing", "tokenizer_files", *GROUND}
MODEL = {
    "config",
    "encoder",
    "heads",
    "checkpoint_files",
    "huggingface",
    "loading",
    "preprocessing",
    *GROUND,
}
TASKS = {
    "scope",
    "answer_scores",
    "answer_spans",
    "calibration",
    "config",
    "encoder",
    "entities",
    "heads",
    "preprocessing",
    "metrics",
    "evaluation_tables",
    "data",
    "text_files",
    "beam_search",
    "decoder",
    "losses",
    "loading",
    "pooling",
    "multi_label",
    "regression",
    "sentence_transformers",
    "translation_metrics",
    "tasks.inputs",
    "tasks.task",
    *GROUND,
}
LEVELS = {
    "sentence_encoder": {
        "batches",
        "text_files",
        "finished_run",
        "loading",
        "pooling",
        "preprocessing",
        "sentence_transformers",
        "tasks",
        *GROUND,
    },
    "similar": {"text_files", "progress", "sentence_encoder", "tasks.task", "terminal", *GROUND},
    "errors": set(),
    "foreign_files": {"errors"},
    "foreign_graphs": {"config", *GROUND},
    "command": {"errors"},
    "answer_scores": set(),
    "answer_spans": set(),
    "whole_files": set(),
    "config": GROUND,
    "shards": GROUND,
    "parquet_files": {"shards", *GROUND},
    "parquet_check": set(),
    "text_files": {"parquet_files", "shards", *GROUND},
    "data": {"config", "shards", "text_files", *GROUND},
    "cluster": {"config", *GROUND},
    "launch": {"cluster", *GROUND},
    "torch_files": GROUND,
    "tensor_files": GROUND,
    "checkpoints": {"tensor_files", *GROUND},
    "h5_files": GROUND,
    "h5_check": set(),
    "checkpoint_files": {"h5_files", "tensor_files", "torch_files", *GROUND},
    "calibration": set(),
    "scope": set(),
    "entities": {"text_files", *GROUND},
    "label_errors": set(),
    "metrics": {"calibration", "config", *GROUND},
    "multi_label": set(),
    "regression": set(),
    "assets": {"assets"},
    "tokenizer_files": GROUND,
    "preprocessing": PREPROCESSING,
    "vocabulary": PREPROCESSING,
    "int8": set(),
    "precision": {"int8"},
    "quantization": {"batches", "encoder", "precision", "tasks.task"},
    "kernel_threads": set(),
    "fastest_step": {"config", "encoder", "kernel_threads", "precision", *GROUND},
    "encoder": {"config", "precision", *GROUND},
    "lora": {"encoder", "optimizers"},
    "accumulation": {"evaluation", "tasks.task"},
    "distribution": {"accumulation", "cluster", "config", "evaluation", "tasks.task", *GROUND},
    "window_pooling": {"config", *GROUND},
    "heads": {"config", "encoder", "pooling", "window_pooling", *GROUND},
    "decoder": {"config", "encoder", *GROUND},
    "beam_search": {"decoder"},
    "translation_metrics": set(),
    "losses": set(),
    "pooling": set(),
    "progress": set(),
    "sentence_transformers": {"pooling", *GROUND},
    "logistic": {"calibration"},
    "load_report": set(),
    "huggingface": {"config", "checkpoint_files", "load_report", *GROUND},
    "loading": MODEL,
    "saving": {"tokenizer_files", *MODEL},
    "tasks.task": {"config", "data", "preprocessing", *GROUND},
    "learned": {"batches", "config", "data", "text_files", "tasks.task", "vocabulary", *GROUND},
    "tasks": TASKS,
    "tasks.features": {"tasks.classification", *TASKS},
    "batches": {"data", "text_files", "preprocessing", "tasks.task", *GROUND},
    "baseline": {"logistic", "batches", "tensor_files", *GROUND},
    "paired_tests": set(),
    "attribution": {"encoder", "tasks.task"},
    "trials": GROUND,
    "plots": GROUND,
    "search_plots": {"plots", "trials", *GROUND},
    "evaluation_plots": {"plots", *GROUND},
    "terminal": {"progress", "tasks.task", "trials"},
    "answer_files": GROUND,
    "predictor": {
        "certificate",
        "finished_run",
        "foreign_graphs",
        "fresh_process",
        "tasks.task",
        *GROUND,
    },
    "predict": {
        "answer_files",
        "text_files",
        "fresh_process",
        "predictor",
        "progress",
        "tasks",
        *GROUND,
    },
    "monitor": GROUND,
    "evaluation": {
        "batches",
        "calibration",
        "encoder",
        "kernel_threads",
        "metrics",
        "paired_tests",
        "scope",
        "tasks.task",
        "config",
        *GROUND,
    },
    "answers": set(),
    "certificate": {"answers", *GROUND},
    "fresh_process": {"answers"},
    "certify": {"answers", "certificate", "fresh_process", "saving", "tasks.task", *GROUND},
    "lineage": {"config", "checkpoint_files", "shards", *GROUND},
    "serving_ops": set(),
    "serving_files": {"version_folders", *GROUND},
    "warmup": {"batches", "text_files", "tasks.task", *GROUND},
    "export": {
        "certificate",
        "certify",
        "encoder",
        "lineage",
        "precision",
        "serving_ops",
        "tasks.task",
        "version_folders",
        "warmup",
        *GROUND,
    },
    "session_check": set(),
    "huggingface_check": set(),
    "report_view": {"paired_tests"},
    "report_texts": {"report_view"},
    "report": {
        "evaluation_plots",
        "lineage",
        "monitor",
        "plots",
        "report_texts",
        "report_view",
        *GROUND,
    },
    "verify": {"answers", "certificate", "foreign_graphs", "fresh_process", *GROUND},
    "publish": {"certificate", "serving_files", "version_folders", *GROUND},
    "version_folders": GROUND,
    "compare": {"config", "lineage", "paired_tests", "search_space", *GROUND},
    "optimizers": {"config", "kernel_threads"},
    "training": {
        "checkpoints",
        "tensor_files",
        "accumulation",
        "batches",
        "distribution",
        "fastest_step",
        "lora",
        "precision",
        "evaluation",
        "tasks.task",
        "config",
        "encoder",
        "loading",
        "optimizers",
        *GROUND,
    },
    "training_view": {
        "attribution",
        "batches",
        "calibration",
        "text_files",
        "evaluation",
        "evaluation_plots",
        "experiment",
        "metrics",
        "monitor",
        "plots",
        "tasks.task",
        "training",
        "window_pooling",
        "config",
        *GROUND,
    },
    "memory": set(),
    "experiment": {
        "batches",
        "data",
        "learned",
        "lineage",
        "loading",
        "preprocessing",
        "tasks",
        "training",
        "config",
        *GROUND,
    },
    "search_space": {"config", "trials", *GROUND},
    "oracles": {"search_space", "trials", *GROUND},
    "trial_folder": GROUND,
    "workers": GROUND,
    "search_view": {
        "monitor",
        "oracles",
        "plots",
        "search_plots",
        "search_space",
        "terminal",
        "trial_folder",
        "trials",
        "config",
        *GROUND,
    },
    "tuner": {
        "checkpoints",
        "experiment",
        "memory",
        "monitor",
        "oracles",
        "search_space",
        "terminal",
        "training",
        "trained_part",
        "training_view",
        "trial_folder",
        "trials",
        "workers",
        "config",
        *GROUND,
    },
    "search": {
        "experiment",
        "memory",
        "monitor",
        "oracles",
        "search_space",
        "search_view",
        "terminal",
        "training",
        "trials",
        "tuner",
        "workers",
        "config",
        *GROUND,
    },
    "row_vectors": {"batches", "tasks.task", *GROUND},
    "features": {
        "batches",
        "distribution",
        "evaluation",
        "experiment",
        "heads",
        "logistic",
        "row_vectors",
        "training",
        *GROUND,
    },
    "distillation": {
        "batches",
        "config",
        "data",
        "encoder",
        "experiment",
        "finished_run",
        "lineage",
        "row_vectors",
        "saving",
        "tasks.distilled",
        "tasks.task",
        "training",
        *GROUND,
    },
    "trained_part": {"distillation", "experiment", "features"},
    "retraining": {
        "distribution",
        "evaluation",
        "experiment",
        "memory",
        "terminal",
        "training",
        "trained_part",
        "training_view",
        "trials",
        "config",
        *GROUND,
    },
    "search_result": {"retraining", "search", "tasks.task", "trials"},
    "slices": {"metrics"},
    "analysis": {
        "batches",
        "calibration",
        "data",
        "text_files",
        "label_errors",
        "slices",
        "tasks.task",
        *GROUND,
    },
    "finished_run": {
        "batches",
        "checkpoint_files",
        "data",
        "text_files",
        "experiment",
        "learned",
        "loading",
        "preprocessing",
        "search_space",
        "tasks",
        "training",
        "config",
        *GROUND,
    },
    "evaluation_tables": {"paired_tests", "tasks.task"},
    "evaluate": {
        "analysis",
        "baseline",
        "calibration",
        "text_files",
        "evaluation",
        "evaluation_tables",
        "finished_run",
        "slices",
        "tasks.task",
        "terminal",
        *GROUND,
    },
}
# what no module imports, but for these: verify asks servers, the other commands have serve's parser
# of flags and its quiet start, and huggingface_check is a script that runs in a process of its own
FOREIGN = {"serve", "train", "torch", "tf_keras", "transformers"}
ALLOWED_FOREIGN = {
    "verify": {"serve"},
    "publish": {"serve"},
    "compare": {"serve"},
    "report": {"serve"},
    "worker": {"serve"},
    "launch": {"serve"},
    "evaluate": {"serve"},
    "similar": {"serve"},
    "predict": {"serve"},
    "huggingface_check": {"torch", "transformers"},
}
SERVE = {"grpc", "grpc_health", "tensorflow", "tensorflow_text", "tensorflow_serving",
         "starlette", "uvicorn", "httptools", "httpcore", "numpy", "google", "serve"}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, wherever it stands in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module in ("kbert", "kbert.tasks", "kbert.assets"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def level_of(module: str) -> str:
    """The row of LEVELS for a module below kbert."""
    if module in LEVELS:
        return module
    return module.split(".")[0]


def is_module(name: str) -> bool:
    """Whether this is a module or a package below kbert, not something inside one."""
    path = ROOT / "kbert" / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


@pytest.mark.parametrize("path", sorted((ROOT / "kbert").rglob("*.py")), ids=lambda path: path.stem)
def test_direction(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT / "kbert").with_suffix("").parts)
    if module in ("__init__", "run", "joint_run", "worker"):  # what starts the rest
        return
    allowed = LEVELS[level_of(module.removesuffix(".__init__"))]
    for name in imports(path):
        top, _, below = name.partition(".")
        assert top not in FOREIGN - ALLOWED_FOREIGN.get(module, set()), f"{path}: imports {name}"
        if top == "kbert" and below and is_module(below):
            assert below in allowed or below.split(".")[0] in allowed, f"{path}: imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "serve").rglob("*.py")), ids=lambda path: path.stem)
def test_serve_knows_nothing_of_kbert(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path)}
    assert tops - set(sys.stdlib_module_names) <= SERVE


def test_nobody_imports_the_scripts() -> None:
    for path in sorted((ROOT / "kbert").rglob("*.py")):
        scripts = {f"kbert.{name}_check" for name in ("session", "huggingface", "h5", "parquet")}
        assert not scripts & imports(path), path


def test_one_home_each() -> None:
    for path in sorted((ROOT / "kbert").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert ("from tensorboard" in text) == (path.name == "monitor.py"), path
        assert "tf.summary" not in text, path
        assert ("ExportArchive" in text) <= (path.name in ("export.py",)), path


def test_kbert_is_light() -> None:
    heavy = {"tensorflow", "keras", "torch", "matplotlib.pyplot"}
    modules = "kbert, kbert.search_plots, kbert.evaluation_plots, sys"
    code = f"import {modules}; print(sorted({heavy} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.strip() == "[]", process.stderr


def test_public_names() -> None:
    import kbert

    for name in kbert.__all__:
        assert getattr(kbert, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kbert.nothing  # noqa: B018
