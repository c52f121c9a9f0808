"""What TensorFlow Serving calls things, in requests and in messages. Imports nothing."""

DEFAULT_SIGNATURE = "serving_default"

_SHORT_TYPES = {"float16": "half", "float32": "float", "float64": "double"}


def short_type(name: str) -> str:
    """The name of a type as it stands in messages: "float" for numpy's "float32"."""
    return _SHORT_TYPES.get(name, name)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as it stands in messages: "[2,3]"."""
    return f"[{','.join(map(str, shape))}]"
