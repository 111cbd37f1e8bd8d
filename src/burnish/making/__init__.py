"""How the checkpoints of the embedded world were made: one file a model, each a command of `burnish world`."""
