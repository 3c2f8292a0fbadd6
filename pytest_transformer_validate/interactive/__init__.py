"""Runs in a process that goes on afterwards: a notebook, an IPython shell."""
