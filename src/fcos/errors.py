"""The errors a user can cause. The command line prints their message and exits with code 2."""


class FCOSError(ValueError):
    """A mistake the user can mend; the message says where, what was expected, what was found and what to do.

    Attributes:
        told: another process has the same error, and tells it.
    """

    told = False


class ConfigError(FCOSError):
    """A wrong option, recipe name or YAML file."""


class DataError(FCOSError):
    """A wrong image, annotation or data folder."""


class WeightsError(FCOSError):
    """A weights file that is missing, damaged, or does not fit the model."""


class TrainingError(FCOSError):
    """A training that cannot go on, for example because the loss is not finite any more."""
