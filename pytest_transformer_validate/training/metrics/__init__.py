"""Numbers of a run: what keeps them and who is told."""
