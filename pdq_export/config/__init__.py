"""What can be set about a run."""
