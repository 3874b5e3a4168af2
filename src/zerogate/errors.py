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
    """The first line of what an error says, for errors of one line."""
    return next(iter(str(error).strip().splitlines()), "")


def one_line(error: BaseException) -> str:
    """All that an error says, its line breaks as blanks."""
    return " ".join(str(error).split())


def no_weights(model: object, device: object) -> str:
    """The message for a model that holds shapes only."""
    return (
        f"this {type(model).__name__} is on the {device} device, where weights have no values; materialise it first: "
        "model.to_empty(device='cpu'), then load its weights"
    )
