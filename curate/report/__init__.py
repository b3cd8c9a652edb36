"""Reports and cards about a run."""
