"""Answer texts by HuggingFace's own tokeniser and model: run in a fresh process, by its path.

    python huggingface_check.py CHECKPOINT SEGMENTS.json OUTPUTS.npz ARCHITECTURE MAX_LENGTH \
        TRUNCATION [STRIDE]

The one file here that imports torch and transformers; nothing of kbert imports it, and it imports
nothing of kbert. Exit status 3 says that one of the two cannot be imported.
SEGMENTS.json is [["text", ...]] or, for pairs, [["first", ...], ["second", ...]]. OUTPUTS.npz gets
ROW/WINDOW/NAME for each text and each of its windows, one without a STRIDE (input_ids,
token_type_ids, offset_mapping, and the model's outputs without the axis of the batch), and the
versions of torch and transformers.
"""

import json
import sys

import numpy as np

try:
    import torch
    import transformers
except (ImportError, OSError) as error:
    print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
    sys.exit(3)


def main(
    checkpoint: str,
    segments_file: str,
    outputs_file: str,
    architecture: str,
    max_length: str,
    truncation: str,
    stride: str = "",
) -> None:
    with open(segments_file, encoding="utf-8") as file:
        segments = json.load(file)
    torch.set_num_threads(1)  # the texts are short: on a busy machine threads mostly wait
    tokenizer = transformers.BertTokenizerFast.from_pretrained(checkpoint)
    model = _load(checkpoint, architecture)
    arrays = {"torch": torch.__version__, "transformers": transformers.__version__}
    # one by one, so without padding: the reference for all that padding must not change
    for row, texts in enumerate(zip(*segments, strict=True)):
        # in lists of one: outside a list an empty second text would count as none
        encoded = tokenizer(
            *([text] for text in texts),
            truncation=truncation,
            max_length=int(max_length),
            return_offsets_mapping=True,
            **({"stride": int(stride), "return_overflowing_tokens": True} if stride else {}),
        )
        encoded.pop("overflow_to_sample_mapping", None)
        for window in range(len(encoded["input_ids"])):
            given = {name: torch.tensor([rows[window]]) for name, rows in encoded.items()}
            found = _answer(model, architecture, given, tokenizer.mask_token_id)
            arrays |= {f"{row}/{window}/{name}": found[name][0].numpy() for name in found}
    np.savez(outputs_file, **arrays)


def _answer(model, architecture: str, given: dict, mask_token_id: int) -> dict:
    """What goes in and what comes out, with the axis of the batch."""
    offsets = given.pop("offset_mapping")
    with torch.no_grad():
        outputs = dict(model(**given))
    if architecture == "BertForMaskedLM":  # elsewhere they are many and nobody asks
        is_mask = given["input_ids"][0] == mask_token_id
        outputs["logits"] = outputs["logits"][:, is_mask]
    ids = {name: given[name] for name in ("input_ids", "token_type_ids")}
    return {**outputs, **ids, "offset_mapping": offsets}


def _load(checkpoint: str, architecture: str):
    """The model for inference; all its weights must be in the checkpoint."""
    model, report = getattr(transformers, architecture).from_pretrained(
        checkpoint, output_loading_info=True
    )
    if report["missing_keys"]:
        sys.exit(f"{architecture} misses the weights {sorted(report['missing_keys'])}")
    return model.eval()


if __name__ == "__main__":
    main(*sys.argv[1:])
