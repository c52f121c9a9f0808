"""Write ops_2_12.txt: run in an environment of tensorflow-cpu 2.12.1 and tensorflow-text 2.12.1.

python kbert/assets/list_ops.py
"""

from pathlib import Path

import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers its ops)
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.client import pywrap_tf_session

# TF Text 2.12.1 defines these, but TF Serving's binary does not link them
UNLINKED = ("TFText>RoundRobinTrim", "TFText>RoundRobinGenerateMasks")


def main() -> None:
    assert tf.__version__ == "2.12.1", tf.__version__
    registered = op_def_pb2.OpList()
    buffer = pywrap_tf_session.TF_GetAllOpList()
    registered.ParseFromString(pywrap_tf_session.TF_GetBuffer(buffer))
    names = sorted({op.name for op in registered.op} - set(UNLINKED))
    text = "".join(f"{name}\n" for name in names)
    (Path(__file__).parent / "ops_2_12.txt").write_text(text, encoding="utf-8")
    print(len(names), "ops")


if __name__ == "__main__":
    main()
