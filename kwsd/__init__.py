"""kwsd hears spoken commands and turns them into JSON events."""

import os

__version__ = "0.1.0"

# Nothing leaves the machine: ONNX Runtime reports to its maker over the network unless told not to before it is loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
