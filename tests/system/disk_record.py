"""Records the file operations of a command with strace, and the folders that a power loss could leave behind.

After a power loss, a disk may lack whatever no `fsync` has confirmed. Two kinds of file systems are simulated:

- journal: the names of files change in the order of the operations, and each `fsync` confirms all earlier changes of
  names, as with ext4 and XFS.
- unordered: the names in a folder are confirmed by an `fsync` of this folder alone, the minimum that POSIX specifies.

In both, the content of a file is confirmed by an `fsync` of this file alone. Without it, the file may contain any
earlier content, a part of its content, or zeros.
"""

import os
import pathlib
import re
import shutil
import subprocess

CALLS = (
  *('open', 'openat', 'creat', 'lseek', 'write', 'writev', 'pwrite64', 'pwritev', 'pwritev2', 'truncate', 'ftruncate'),
  *('fallocate', 'copy_file_range', 'sendfile', 'splice', 'fsync', 'fdatasync', 'sync', 'syncfs', 'rename', 'renameat'),
  *('renameat2', 'link', 'linkat', 'symlink', 'symlinkat', 'unlink', 'unlinkat', 'mkdir', 'mkdirat', 'rmdir'),
)
CALL = re.compile(r'(\d+) +(\w+)\((.*)\) += (-?\d+)', re.DOTALL)
STRINGS = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
DESCRIPTOR = re.compile(r'^(?:(\d+)|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>')


def is_available():
  """Returns whether strace is installed and may trace processes, which containers often forbid."""
  return bool(shutil.which('strace')) and not subprocess.run(['strace', '-qq', 'true'], capture_output=True).returncode


def command(log):
  """Returns the words before a command that record its file operations in a log."""
  options = ['-f', '--seccomp-bpf', '-qq', '-y', '-xx', '-s', str(2**26), '-e', 'signal=none']
  return ['strace', *options, '-e', f'trace={",".join(CALLS)}', '-o', str(log)]


def read_calls(log):
  """Yields (name of the call, arguments, result) of the successful calls, in the order in which they returned."""
  unfinished = {}
  for line in log.read_text().splitlines():
    pid = line.split(' ', 1)[0]
    if line.endswith(' <unfinished ...>'):
      unfinished[pid] = line.removesuffix(' <unfinished ...>')
      continue
    if ' resumed>' in line:
      line = unfinished.pop(pid) + line.split(' resumed>', 1)[1]
    call = CALL.match(line)
    if call and int(call[4]) >= 0:
      yield call[2], call[3], int(call[4])


def decode(text):
  return bytes.fromhex(text.replace('\\x', ''))


class Disk:
  """A folder during a record: each file and folder with its possible states after a power loss.

  Attributes:
    num_changes: number of changes of the folder or its files so far, each of which may be the last.
  """

  def __init__(self, folder):
    self.num_changes, self._num_confirmed = 0, 0
    self._root, self._prefix = Node({}, 0), os.fsencode(folder)
    self._positions, self._files = {}, {}  # by descriptor

  def apply(self, name, arguments, result):
    """Applies a call to the simulated folder, if it concerns it; returns whether it was a change or a sync."""
    descriptor = DESCRIPTOR.match(arguments)
    base = decode(descriptor[2]) if descriptor else b''
    strings = [decode(text) for text in STRINGS.findall(arguments)]
    if name in ('fsync', 'fdatasync', 'write', 'writev', 'pwrite64', 'ftruncate', 'lseek'):
      concerned = self._relative(base)
      return concerned is not None and self._apply_to_file(name, int(descriptor[1]), concerned, arguments, result)
    bases = [decode(text) for _, text in re.findall(r'(^|, )(?:AT_FDCWD|\d+)<((?:\\x[0-9a-f]{2})*)>', arguments)]
    paths = [
      self._relative(os.path.join(bases[min(i, len(bases) - 1)] if bases else b'', path))
      for i, path in enumerate(strings)
    ]
    if all(path is None for path in paths):
      return False
    return self._apply_to_names(name, paths, arguments, result)

  def checkpoints(self):
    """Returns the steps of the checkpoints in the current folder of a run."""
    folder = self._find([b'checkpoints'])
    return sorted(int(name) for name in folder.current if name.isdigit()) if folder else []

  def _relative(self, path):
    path = os.path.normpath(path)
    if path == self._prefix:
      return ()
    return tuple(path[len(self._prefix) + 1 :].split(b'/')) if path.startswith(self._prefix + b'/') else None

  def _find(self, path):
    node = self._root
    for name in path:
      node = node.current.get(name) if node and isinstance(node.current, dict) else None
    return node

  def _change(self, node, value):
    self.num_changes += 1
    node.versions.append((self.num_changes, value))

  def _set_name(self, path, node):
    folder = self._find(path[:-1])
    entries = {name: entry for name, entry in folder.current.items() if name != path[-1]}
    self._change(folder, entries | ({path[-1]: node} if node else {}))

  def _apply_to_file(self, name, number, path, arguments, result):
    node = self._find(path)
    if node is None:  # a deleted file
      return False
    if name in ('fsync', 'fdatasync'):
      node.versions = node.versions[-1:]
      self._num_confirmed = self.num_changes
      return True
    if name == 'lseek':
      self._positions[number] = result
      return False
    content = node.current
    if name == 'ftruncate':
      size = int(arguments.rsplit(', ', 1)[1])
      self._change(node, content[:size].ljust(size, b'\0'))
      return True
    data = b''.join(decode(text) for text in STRINGS.findall(arguments))[:result]
    begin = int(arguments.rsplit(', ', 1)[1]) if name == 'pwrite64' else self._positions[number]
    begin = len(content) if begin is None else begin  # None: append
    if name != 'pwrite64' and self._positions[number] is not None:
      self._positions[number] += result
    self._change(node, content[:begin].ljust(begin, b'\0') + data + content[begin + result :])
    return True

  def _apply_to_names(self, name, paths, arguments, result):
    (path, *others) = paths
    if name in ('open', 'openat', 'creat'):
      self._positions[result] = None if 'O_APPEND' in arguments else 0
      node = self._find(path)
      if node is None and 'O_CREAT' in arguments:
        self._set_name(path, Node(b'', self.num_changes))
        return True
      if node and 'O_TRUNC' in arguments and node.current:
        self._change(node, b'')
        return True
      return False
    if name in ('mkdir', 'mkdirat'):
      if path:
        self._set_name(path, Node({}, self.num_changes))
    elif name in ('unlink', 'unlinkat', 'rmdir'):
      self._set_name(path, None)
    elif name in ('rename', 'renameat', 'renameat2') and path[:-1] == others[0][:-1]:
      folder, node = self._find(path[:-1]), self._find(path)
      entries = {key: entry for key, entry in folder.current.items() if key != path[-1]}
      self._change(folder, entries | {others[0][-1]: node})
    else:
      raise NotImplementedError(f'{name}({arguments[:200]})')
    return True

  def write(self, folder, rng=None, is_ordered=True):
    """Writes the simulated folder: its current state or, given a random generator, one after a power loss."""
    last = rng and rng.randint(self._num_confirmed, self.num_changes)

    def choose(node):
      if not rng:
        return node.current
      if isinstance(node.current, dict) and is_ordered:
        return [value for number, value in node.versions if number <= last or number == node.versions[0][0]][-1]
      return rng.choice(node.versions)[1]

    def write_node(node, path):
      value = choose(node)
      if isinstance(value, dict):
        path.mkdir()
        for name, entry in value.items():
          write_node(entry, path / os.fsdecode(name))
        return
      if rng and value is not node.versions[0][1]:  # not confirmed
        value = rng.choice([value, value[: rng.randint(0, len(value))], bytes(len(value))])
      path.write_bytes(value)

    write_node(self._root, folder)


class Node:
  """A file or a folder, with its versions since its last sync.

  Attributes:
    versions: [(number of the change, value)]; a value is bytes, or {name: node}.
  """

  def __init__(self, value, number):
    self.versions = [(number, value)]

  @property
  def current(self):
    return self.versions[-1][1]


def contents(folder: pathlib.Path):
  """Returns {relative path: content} of the files in a folder."""
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}
