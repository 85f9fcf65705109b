"""Arrays in files, to which rows are appended."""

import math
import os
import pathlib

import numpy as np


class GrowingArray:
  """An .npy file to which rows are appended.

  If the disk is full, `append` raises OSError. Writing to `np.lib.format.open_memmap` would end the process by SIGBUS,
  and needs the number of rows in advance, which skipped images reduce.

  Attributes:
    num_rows: number of rows.
  """

  def __init__(self, path: pathlib.Path, shape: tuple[int, ...], dtype: type[np.generic]):
    """Opens the file, which is made if it does not exist.

    Args:
      path: the file.
      shape: shape of a row.
      dtype: type of the values.
    """
    self._shape, self._dtype = shape, np.dtype(dtype)
    self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), 'r+b')
    self._write_header(0)
    self._row_bytes = self._dtype.itemsize * math.prod(shape)
    self._start = self._file.tell()
    self.num_rows = (self._file.seek(0, os.SEEK_END) - self._start) // self._row_bytes

  def _write_header(self, num_rows):
    """Writes the header, which NumPy pads to a length that does not depend on the number of rows."""
    self._file.seek(0)
    np.lib.format.write_array_header_1_0(
      self._file, {'descr': self._dtype.str, 'fortran_order': False, 'shape': (num_rows, *self._shape)}
    )

  def truncate(self, num_rows: int) -> None:
    """Removes all rows after the first `num_rows`."""
    self.num_rows = num_rows
    self._file.truncate(self._start + num_rows * self._row_bytes)
    self._file.seek(0, os.SEEK_END)

  def append(self, rows: np.ndarray) -> None:
    """Appends rows; raises `OSError` if the disk is full."""
    self._file.write(np.ascontiguousarray(rows, self._dtype).data)
    self._file.flush()
    self.num_rows += len(rows)

  def close(self) -> None:
    """Writes the header of the rows so far, and the file to the disk."""
    with self._file:
      self._write_header(self.num_rows)
      self._file.flush()
      os.fsync(self._file.fileno())
