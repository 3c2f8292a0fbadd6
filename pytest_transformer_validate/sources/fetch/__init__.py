"""What comes from another machine: fetched once, hashed, accepted by hash, kept privately."""
