"""Where a run's scalars go beside ``metrics.jsonl``: one list of numbers, and who writes it by ``record.to``.

scalars       the list: names, steps, what a writer may do, and what happens to one that fails
tensorboard   in the trainer's process, as torch does it
service       a process for each service, as the trainer sees it: told, heard, given up
process       the same from within
wandb         what Weights & Biases is told there
mlflow        what MLflow is told there

A service runs in a process of its own, for it may hang, end, or draw random numbers: none of that reaches the run.
"""
