"""The process and its machine: errors, exit statuses, signals, files, memory, and runs of several processes."""
