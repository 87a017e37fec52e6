"""`python -m kwsd`, the same as the `kwsd` command."""

from kwsd.cli import main

if __name__ == "__main__":
    main()
