"""What a model's code may do to the process, found, undone, and kept from other models."""
