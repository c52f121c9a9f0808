"""The model against transformers: torch in single and double precision, and TensorFlow."""

from __future__ import annotations

import logging
import warnings

from fidelity import encoder, heads, weights
from fidelity.claims import Claim

# Of new heads, which is meant, and of texts of one token.
logging.getLogger("kbert").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="You are using a softmax over axis -1")

CLAIMS: list[Claim] = [*encoder.CLAIMS, *heads.CLAIMS, *weights.CLAIMS]
