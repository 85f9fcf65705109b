"""Exceptions that end a command with a message instead of a traceback; `exit_status` maps them to exit statuses."""

MAX_REASON_LENGTH = 200  # characters of a library's message, or of a name in a file, that a message quotes


def first_line(error: BaseException) -> str:
  """Returns the first line of an exception's message by `printable`, or its class name if the message is empty."""
  return printable(next((line for line in str(error).splitlines() if line.strip()), type(error).__name__))


def printable(text: object, max_length: int = MAX_REASON_LENGTH) -> str:
  """Returns a text from a file for a message: unprintable characters are escaped, and a long text is cut."""
  characters = (x if x.isprintable() else x.encode('unicode_escape').decode() for x in str(text)[: max_length + 1])
  line = ''.join(characters)
  return line if len(line) <= max_length else f'{line[: max_length - 3]}...'


class UsageError(Exception):
  """The request is invalid: a wrong flag, config field, dataset or mesh (exit status 2)."""


class LockedError(UsageError):
  """Another process holds a lock; the message names the file or folder."""


class RunError(Exception):
  """A valid request failed at run time: unreadable data, a loss that is not finite (exit status 1)."""


class Stopped(Exception):
  """A signal stopped the command after its work was saved; the same command resumes it (exit status 75)."""
