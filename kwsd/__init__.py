"""kwsd hears spoken commands and turns them into JSON events."""

__version__ = "0.1.0"
