"""The errors a user of wsc can meet: every one says what was wrong, where, and what to do."""


class WscError(Exception):
    """Base of every error wsc raises on purpose; catching it catches them all."""


class TraceError(WscError):
    """What was given to `wsc.compile` is not a function that JAX can trace with these arguments."""


class ArgumentError(WscError):
    """A compiled program was called, or a public function given, an argument of the wrong kind, shape or dtype."""


class UnsupportedError(WscError):
    """A primitive of the program has no rule, so no honest cost could be given for it."""


class FitError(WscError):
    """The program does not fit: a PE over its SRAM, or a model over the wafers it was given."""


class ConfigError(WscError):
    """A model configuration is missing a field, or has one with a value that wsc cannot build."""


class CheckpointError(WscError):
    """A checkpoint or tokenizer file is missing, truncated, corrupt, or its weights do not match the model."""


class DownloadError(WscError):
    """A file could not be fetched, or what came is not the file that was asked for."""


class FabricError(WscError):
    """A program for the fabric simulator is wrong, or came to no end."""


class RouteLoopError(FabricError):
    """The routes of a color lead back to where they have been: a wavelet would go round for ever."""


class ColorClashError(FabricError):
    """A color is routed in two ways at one router, and its switch has no position left for the second."""


class QueueSizeError(FabricError):
    """A queue of the fabric has room for no wavelet."""


class MissingReceiverError(FabricError):
    """Wavelets go where nobody takes them in, or are awaited where none come."""


class DeadlockError(FabricError):
    """Nothing moves any more and the program has not ended; `report` has the PEs, colors and queues."""


class CycleLimitError(FabricError):
    """The program has not ended after as many cycles as it was given."""
