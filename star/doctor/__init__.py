"""What this machine can do: `short` opens no model, `full` measures one with random weights."""
