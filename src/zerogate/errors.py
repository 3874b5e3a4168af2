"""Everything zerogate raises on purpose: one base class, one line a message, the value received and the way out."""


class ZerogateError(ValueError):
    """Base of all errors that a user can cause and mend."""


class WatchError(ZerogateError):
    """The model could not be run on the example inputs, or holds nothing that could be removed."""


class CompactionError(ZerogateError):
    """The compacted module would differ from the gated one; it is not handed back."""


class DataError(ZerogateError):
    """A data set is missing, malformed or does not fit the model."""


class ConfigError(ZerogateError):
    """A configuration or a command line that cannot be carried out."""


class CheckpointError(ZerogateError):
    """A checkpoint that is truncated, belongs to another model, or lacks what is asked of it."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; "" where it has none."""
    return next(iter(str(error).strip().splitlines()), "")


def one_line(error: BaseException) -> str:
    """An error's whole message on one line; the name of its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def class_and_line(error: BaseException) -> str:
    """An error's class and the first 200 characters of its first line, as in ``KeyError: 'weight'``: for errors of
    other libraries, whose message alone may say little."""
    line = first_line(error)[:200]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def no_weights(model: object, device: object) -> str:
    """The message for a model whose weights have shapes and no values."""
    return (
        f"this {type(model).__name__} is on the {device} device, where weights have no values; materialise it first: "
        "model.to_empty(device='cpu'), then load its weights"
    )
