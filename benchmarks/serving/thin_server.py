"""The peers: the thinnest gRPC server around ONNX Runtime or torch, BertTokenizerFast in front.

`python thin_server.py onnxruntime | torch CHECKPOINT THREADS`: CHECKPOINT is a folder in
HuggingFace layout (for ONNX Runtime with model.onnx beside). A request is the text in UTF-8, the
answer float32 probabilities; there is no model name, no version, no JSON and no batching. Prints
its port when it is ready.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent import futures
from pathlib import Path

os.environ["USE_TF"] = "0"  # transformers would import it too
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc
import numpy as np
from peer_models import onnxruntime_model, torch_model
from transformers import BertTokenizerFast

MAX_LENGTH = 128
HANDLER_THREADS = 32
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def main(engine: str, checkpoint: Path, threads: int) -> None:
    """Serve until stdin ends."""
    tokenizer = BertTokenizerFast.from_pretrained(checkpoint)
    infer = {"onnxruntime": onnxruntime_model, "torch": torch_model}[engine](checkpoint, threads)
    tokenizing = threading.Lock()  # a fast tokeniser is not to be truncated by two threads at once

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        with tokenizing:
            pieces = tokenizer(
                [request.decode()], truncation=True, max_length=MAX_LENGTH, return_tensors="np"
            )
        logits = infer({name: pieces[name].astype(np.int64) for name in NAMES})
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (exponentials / exponentials.sum(axis=-1, keepdims=True)).tobytes()

    server = grpc.server(futures.ThreadPoolExecutor(HANDLER_THREADS))
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("Thin", {"Predict": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
