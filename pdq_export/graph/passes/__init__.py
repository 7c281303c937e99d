"""Small rewrites, one per module, each ``run(model) -> model`` on a model that the caller may change."""
