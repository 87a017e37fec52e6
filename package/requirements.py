#!/usr/bin/env python3
"""`requirements.py [--left-out] SETUP_CFG`: what the Debian package holds besides kwsd, or what it leaves out."""

import configparser
import re
import sys

EXTRAS = ("monitor", "http", "mqtt", "wyoming")  # that a daemon may use
TRAINING = "train"  # several GB, and a daemon with a model in ONNX never imports them


def main() -> None:
    """Print one requirement per line."""
    setup = configparser.ConfigParser()
    setup.read(sys.argv[-1])
    extras = setup["options.extras_require"]
    asked = [extras[TRAINING]] if sys.argv[1] == "--left-out" else [extras[extra] for extra in EXTRAS]
    if sys.argv[1] != "--left-out":
        asked.append(setup["options"]["install_requires"])
    for line in "\n".join(asked).splitlines():
        if re.match(r"\w", line):
            print(line)


if __name__ == "__main__":
    main()
