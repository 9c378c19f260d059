"""Errors that say what was asked, what was found and what to do."""


class MoistError(Exception):
    """Base of every error moist raises on purpose; `hint` is printed on a line of its own."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\nhint: {self.hint}" if self.hint else message


class ConfigError(MoistError):
    """The request can't be right, whatever is computed: a key, a value or a combination."""

    exit_code = 2


class DataError(ConfigError):
    """A data set can't be read as asked."""


class StageError(MoistError):
    """A stage could not finish; nothing of it was stored."""


class StoreError(MoistError):
    """The store can't be read or written."""


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its class if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def brief(error: Exception) -> str:
    """An error's class and the first line of what it says."""
    name, said = type(error).__name__, first_line(error)
    return name if said == name else f"{name}: {said}"
