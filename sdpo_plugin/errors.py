"""The errors a user can meet. Each message says what conflicts, the value seen, and what to set."""


class SDPOError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(SDPOError, ValueError):
    """The config asks for something that contradicts itself, sDPO, or what is supported."""


class DataError(SDPOError, ValueError):
    """A step's data set cannot be read, is empty, is not preference data, or would train something wrong."""


class OutputError(SDPOError, ValueError):
    """The output directory holds something that must not be overwritten or cannot be read."""


class ReferenceTableError(SDPOError, ValueError):
    """A table of reference log-probs is incomplete, not finite, or belongs to other rows."""


class StartGateError(SDPOError, RuntimeError):
    """A step did not begin where policy and reference are equal, so its reference is wrong."""


class TrainingError(SDPOError, RuntimeError):
    """Training a step went wrong in a way that must not reach the next one."""


class HookError(SDPOError, RuntimeError):
    """The user's own code before or after a step raised an error, or did not write the rows that it is to make."""


class RankZeroError(SDPOError, RuntimeError):
    """Rank 0 met an error that it could not share; this rank ends because of it."""


class UnsupportedHostError(SDPOError, RuntimeError):
    """The installed host is outside the supported range, or has not what this package relies on.

    A ``RuntimeError`` on purpose: Axolotl logs an ``ImportError`` from a plugin and trains on
    without the plugin, and then trains something else than what the user asked for.
    """
