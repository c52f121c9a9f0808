"""Answer texts by HuggingFace's own tokeniser and model: run in a fresh process, by its path.

    python huggingface_check.py CHECKPOINT SEGMENTS.json OUTPUTS.npz ARCHITECTURE MAX_LENGTH \
        TRUNCATION [STRIDE [MOST_WINDOWS]]

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

# transformers imports scikit-learn where it is installed: most of a second, for nothing
sys.modules["sklearn"] = None  # pyright: ignore[reportArgumentType]
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
    most_windows: str = "",
) -> None:
    with open(segments_file, encoding="utf-8") as file:
        segments = json.load(file)
    torch.set_num_threads(1)  # the texts are short: on a busy machine threads mostly wait
    tokenizer = transformers.BertTokenizerFast.from_pretrained(checkpoint)
    model = _load(checkpoint, architecture)
    arrays = {"torch": torch.__version__, "transformers": transformers.__version__}
    # one by one, so without padding: the reference for all that padding must not change
    for row, texts in enumerate(zip(*segments, strict=True)):
        encoded = _encode(tokenizer, texts, truncation, int(max_length), int(stride or -1))
        windows = range(len(encoded["input_ids"]))
        for window in windows[: int(most_windows)] if most_windows else windows:
            given = {name: torch.tensor([rows[window]]) for name, rows in encoded.items()}
            found = _answer(model, architecture, given, tokenizer.mask_token_id)
            arrays |= {f"{row}/{window}/{name}": found[name][0].numpy() for name in found}
    np.savez(outputs_file, **arrays)


def _encode(tokenizer, texts, truncation: str, max_length: int, stride: int) -> dict:
    """Lists of a text's windows, one if stride is below 0, by the names that a model knows."""
    options = {"max_length": max_length, "return_offsets_mapping": True}
    if stride < 0:  # in lists of one: outside a list an empty second text would count as none
        return tokenizer(*([text] for text in texts), truncation=truncation, **options)
    options |= {"stride": stride, "return_overflowing_tokens": True}
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    room = max_length - len(texts) - 1
    left = room - stride - 1  # for a first text, where a second one needs windows
    if len(texts) > 1 and sum(map(len, plain)) > room and len(plain[0]) > left:
        return _cut_first(tokenizer, texts, left, options)
    encoded = tokenizer(*([text] for text in texts), truncation=truncation, **options)
    del encoded["overflow_to_sample_mapping"]
    return encoded


def _cut_first(tokenizer, texts, left: int, options: dict) -> dict:
    """Windows of the second text after the first `left` tokens of the first one.

    transformers has an error for a first text that is too long.
    """
    first = tokenizer(
        [texts[0]], truncation=True, **{**options, "max_length": left + 2, "stride": 0}
    )
    chunk = options["stride"] + 3  # [CLS], as many tokens as there is room for, [SEP]
    second = tokenizer([texts[1]], truncation=True, **{**options, "max_length": chunk})
    windows = second["input_ids"]
    joined = {
        name: [first[name][0] + window[1:] for window in second[name]]
        for name in ("input_ids", "attention_mask", "offset_mapping")
    }
    types = [[0] * (left + 2) + [1] * (len(window) - 1) for window in windows]
    return {**joined, "token_type_ids": types}


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
