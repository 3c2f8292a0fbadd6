"""Models of the Hugging Face Hub: named strictly, pinned to a commit, fetched by one process."""
