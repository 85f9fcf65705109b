"""The files of a run: configs and their validation, checkpoints, predictions and results."""
