"""User errors. The command line prints their message and exits with code 2."""


class FCOSError(ValueError):
    """Error that the user can fix; the message says where it is, what was expected, what was found and what to do.

    Attributes:
        told: True if another process reports this error, so that this one must not print it.
    """

    told = False


class ConfigError(FCOSError):
    """Wrong option, recipe name or YAML file."""


class DataError(FCOSError):
    """Wrong image, annotation or data folder."""


class WeightsError(FCOSError):
    """Weights file that is missing, damaged, or does not fit the model."""


class WriteError(FCOSError, OSError):
    """File or folder that cannot be written, for example because the disk is full; `errno` is that of the system."""


class ExportError(FCOSError):
    """Exported file that does not detect what PyTorch detects, or cannot be compared with it."""


class TrainingError(FCOSError):
    """Training that cannot continue, for example because the loss is no longer finite."""
