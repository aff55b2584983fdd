"""What `ipu-trainer train TASK` trains. task.py finds tasks, recipe has what all share, and tasks do not know each other."""
