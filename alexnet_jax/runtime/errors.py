"""How a command ends that cannot do all it was asked to; `main.py` turns each into a sentence and an exit status."""


def first_line(error: BaseException) -> str:
  """Returns the first line of what an error of a library says, or its kind where it says nothing."""
  return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


class UsageError(Exception):
  """What was asked for cannot be done as asked: a wrong flag, field, dataset or mesh (exit status 2)."""


class LockedError(UsageError):
  """Another process works where this one wants to; the message says where."""


class RunError(Exception):
  """A run that was rightly asked for could not go on: unreadable data, a loss that is not finite (exit status 1)."""


class Stopped(Exception):
  """Told to stop, with everything saved; the same command goes on (exit status 75)."""
