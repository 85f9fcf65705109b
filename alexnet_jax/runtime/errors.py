"""Exceptions that end a command with a message instead of a traceback; `exit_status` maps them to exit statuses."""


def first_line(error: BaseException) -> str:
  """Returns the first line of an exception's message, or its class name if the message is empty."""
  return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


class UsageError(Exception):
  """The request is invalid: a wrong flag, config field, dataset or mesh (exit status 2)."""


class LockedError(UsageError):
  """Another process holds a lock; the message names the file or folder."""


class RunError(Exception):
  """A valid request failed at run time: unreadable data, a loss that is not finite (exit status 1)."""


class Stopped(Exception):
  """A signal stopped the command after its work was saved; the same command resumes it (exit status 75)."""
