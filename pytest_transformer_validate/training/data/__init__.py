"""From data of any kind to batches: tokens, collators, quality, loaders."""
