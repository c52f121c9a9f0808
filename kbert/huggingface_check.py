"""Answer texts by HuggingFace's own tokeniser and model: run in a fresh process, by its path.

    python huggingface_check.py CHECKPOINT SEGMENTS.json OUTPUTS.npz ARCHITECTURE MAX_LENGTH

The one file here that imports torch and transformers; nothing of kbert imports it, and it imports
nothing of kbert. Exit status 3 says that one of the two cannot be imported.
SEGMENTS.json is [["text", ...]] or, for pairs, [["first", ...], ["second", ...]]. OUTPUTS.npz gets
ROW/NAME for each text (input_ids, token_type_ids, and the model's outputs without the axis of the
batch), and the versions of torch and transformers.
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
    checkpoint: str, segments_file: str, outputs_file: str, architecture: str, max_length: str
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
            truncation="longest_first",
            max_length=int(max_length),
            return_tensors="pt",
        )
        with torch.no_grad():
            outputs = dict(model(**encoded))
        if architecture == "BertForMaskedLM":  # elsewhere they are many and nobody asks
            is_mask = encoded["input_ids"][0] == tokenizer.mask_token_id
            outputs["logits"] = outputs["logits"][:, is_mask]
        outputs |= {name: encoded[name] for name in ("input_ids", "token_type_ids")}
        arrays |= {f"{row}/{name}": tensor[0].numpy() for name, tensor in outputs.items()}
    np.savez(outputs_file, **arrays)


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
