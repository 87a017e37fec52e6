#!/usr/bin/env python3
"""`requirements.py [--left-out] SETUP_CFG`: what the Debian package holds besides kwsd, or what it leaves out."""

import configparser
import re
import sys

HELD = ("monitor", "http", "mqtt", "wyoming")  # extras that a daemon may use
LEFT_OUT = ("torch", "train")  # several GB, and a daemon with a model in ONNX never imports them


def main() -> None:
    """Print one requirement per line."""
    setup = configparser.ConfigParser()
    setup.read(sys.argv[-1])
    left_out = sys.argv[1] == "--left-out"
    asked = [setup["options.extras_require"][extra] for extra in (LEFT_OUT if left_out else HELD)]
    if not left_out:
        asked.append(setup["options"]["install_requires"])
    for line in "\n".join(asked).splitlines():
        if re.match(r"(?!kwsd\[)\w", line):  # no comment, and no other extra
            print(line)


if __name__ == "__main__":
    main()
