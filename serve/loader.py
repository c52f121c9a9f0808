"""SavedModel -> servable: load the graph, put batching around its session, warm it up."""

import functools
import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from serve.errors import Code, ServingError
from serve.metrics import Metrics
from serve.servable import Servable, Session
from serve.session import ModelSession
from serve.text_protos import BatchingParameters, read_text_proto
from serve.warmup import warm_up

if TYPE_CHECKING:
    from serve.batching import BatchScheduler

BATCHING_FILE = "batching_params.pbtxt"
SERVE_TAG = "serve"

log = logging.getLogger(__name__)


class Loader:
    """Loads versions of models. Any number of threads may do so at once.

    Args:
        metrics: what the loaded models count into.
        scheduler: batches the requests; None runs each by itself.
        per_model_batching: whether a model is batched by its own file batching_params.pbtxt, in
            the threads of the scheduler; one without that file is not batched.
        warm_up: whether to replay the warm-up requests of a model.
        tags: of the MetaGraphDef to load.
        inter_op_threads: threads that run operations; 0 lets TensorFlow choose.
        intra_op_threads: threads within an operation; 0 lets TensorFlow choose.
        check_method_names: TF Serving's --enable_signature_method_name_check.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        scheduler: "BatchScheduler | None" = None,
        per_model_batching: bool = False,
        warm_up: bool = True,
        tags: Sequence[str] = (SERVE_TAG,),
        inter_op_threads: int = 0,
        intra_op_threads: int = 0,
        check_method_names: bool = False,
    ) -> None:
        self._metrics = metrics
        self._scheduler = scheduler
        self._per_model_batching = per_model_batching
        self._warm_up = warm_up
        self._tags = list(tags)
        self._check_method_names = check_method_names
        self._config = tf.compat.v1.ConfigProto(
            inter_op_parallelism_threads=inter_op_threads,
            intra_op_parallelism_threads=intra_op_threads,
        )

    def __call__(self, name: str, path: Path, version: int) -> Servable:
        """Loads the SavedModel in the folder of a version.

        Raises:
            ServingError: it cannot be loaded or warmed up; the message is one line.
        """
        session: Session
        session, signatures = self._load(path)
        try:
            session = self._batched(session, signatures, path)
            servable = Servable(
                version,
                session,
                signatures,
                name=name,
                metrics=self._metrics,
                check_method_names=self._check_method_names,
            )
        except Exception:
            session.close()
            raise
        try:
            if self._warm_up:
                warm_up(servable, path, metrics=self._metrics)
        except ServingError as error:
            servable.close()
            raise ServingError(error.code, _one_line(error)) from error
        except Exception:
            servable.close()
            raise
        return servable

    def _load(self, path: Path) -> tuple[ModelSession, dict[str, meta_graph_pb2.SignatureDef]]:
        text_ops_problem = _import_text_ops()
        session = tf.compat.v1.Session(graph=tf.Graph(), config=self._config)
        try:
            with session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.loader.load(session, self._tags, str(path))
        except Exception as error:  # the loader raises errors of many kinds for a broken model
            session.close()
            raise _load_error(error, text_ops_problem) from error
        # Copies: the MetaGraphDef holds the whole graph a second time and can go.
        signatures = {}
        for name, signature in meta_graph.signature_def.items():
            signatures[name] = meta_graph_pb2.SignatureDef()
            signatures[name].CopyFrom(signature)
        return ModelSession(session), signatures

    def _batched(
        self,
        session: ModelSession,
        signatures: Mapping[str, meta_graph_pb2.SignatureDef],
        path: Path,
    ) -> Session:
        if self._scheduler is None:
            return session
        if not self._per_model_batching:
            return self._scheduler.wrap(session, signatures)
        if not (path / BATCHING_FILE).exists():
            log.info("no %s in %s: it is not batched", BATCHING_FILE, path)
            return session
        parameters = read_text_proto(path / BATCHING_FILE, BatchingParameters)
        return self._scheduler.wrap(session, signatures, parameters=parameters)


@functools.cache
def _import_text_ops() -> str:
    """Registers the operations of TF Text; gives the reason if that fails, else ""."""
    try:
        importlib.import_module("tensorflow_text")
    except (ImportError, tf.errors.OpError) as error:
        return _one_line(error)
    return ""


def _load_error(error: Exception, text_ops_problem: str) -> ServingError:
    message = _one_line(error)
    is_unknown_op = "Op type not registered" in message or "No op named" in message
    if is_unknown_op and text_ops_problem:
        message += (
            " (tensorflow_text, which has the text operations, cannot be imported: "
            f"{text_ops_problem}; install the tensorflow-text of the version of tensorflow)"
        )
    if "SavedModel file does not exist" in message or "could not be found in SavedModel" in message:
        return ServingError(Code.NOT_FOUND, message)
    # An OpError brings the code of TensorFlow.
    return ServingError(Code(getattr(error, "error_code", None) or Code.UNKNOWN), message)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
