"""Models in a Gist: named in any form that people copy, pinned to a revision, fetched once."""
