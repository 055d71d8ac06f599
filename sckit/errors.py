"""The errors a user can cause. The command line prints their one sentence and exits with `exit_code`."""


class SckitError(Exception):
    """Base class: what is wrong, what was found, what was wanted, what to do; one sentence."""

    exit_code = 1


class DataError(SckitError):
    """The data are not what they should be: not counts, truncated, empty, nothing in common."""


class ConfigError(SckitError):
    """An option is outside its range or contradicts another one."""

    exit_code = 2


def said(error: Exception) -> str:
    """Return what an error of a library says, in one line of bearable length."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, OSError) and error.strerror:  # without its number
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    return text if len(text) <= 200 else text[:200] + "..."
