"""`make setup`: checks the Python that runs it, then hands over to the installation."""

import sys


def check_python(version: "tuple[int, ...]") -> None:
    """Exit with a message that helps when this Python is too old; any Python 3 can read this file."""
    if tuple(version[:2]) < (3, 11):
        found = ".".join(str(number) for number in version[:2])
        sys.exit(
            "Muster needs Python 3.11 or newer, and this is Python " + found + ".\n"
            "Name a newer one: make setup PYTHON=python3.12"
        )


if __name__ == "__main__":
    check_python(sys.version_info[:3])
    # Only a new enough Python can read what this imports.
    from local.installation import main

    sys.exit(main())
