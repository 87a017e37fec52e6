#!/usr/bin/env python3
"""`requirements.py [--left-out] SETUP_CFG`: what the Debian package holds besides kwsd, or what it leaves out."""

import configparser
import re
import sys

LEFT_OUT = ("torch", "torchaudio")  # several GB, and a daemon with a model in ONNX never imports them
EXTRAS_LEFT_OUT = ("tensorboard", "bench", "test", "check")  # for those who train or develop


def main() -> None:
    """Print one requirement per line."""
    left_out = sys.argv[1] == "--left-out"
    setup = configparser.ConfigParser()
    setup.read(sys.argv[-1])
    extras = [asked for extra, asked in setup["options.extras_require"].items() if extra not in EXTRAS_LEFT_OUT]
    for line in "\n".join([setup["options"]["install_requires"], *extras]).splitlines():
        name = re.match(r"[\w.-]+", line)
        if name and (name[0] in LEFT_OUT) == left_out:
            print(line.replace(" ", ""))


if __name__ == "__main__":
    main()
