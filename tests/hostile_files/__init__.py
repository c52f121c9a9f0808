"""Bad and hostile files, by the reader that meets them: how each is made, and what must come of it.

`tests/hostile.py` runs them all, each measured, and `tests/test_hostile_files.py` the quick ones.
A case begins with a copy of something good (a checkpoint, a finished run, or nothing) and spoils
it. What would be done by a file that ran is to make the file `CANARY` names.
"""

from hostile_files.case import CANARY, CHECKPOINT, NOTHING, RUN, Case
from hostile_files.configs import configs
from hostile_files.readers import READERS
from hostile_files.runs import run_cases
from hostile_files.texts import data
from hostile_files.tokenizers import sentences, tokenizers
from hostile_files.weights import weights

__all__ = ["CANARY", "CASES", "CHECKPOINT", "NOTHING", "READERS", "RUN", "Case"]

CASES: tuple[Case, ...] = (*weights, *configs, *tokenizers, *sentences, *data, *run_cases)
assert len({case.name for case in CASES}) == len(CASES), "a case is named twice"
