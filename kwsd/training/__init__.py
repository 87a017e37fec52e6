"""Training, evaluation and export. The daemon never imports this package."""
