"""Prints the part of requirements.lock that the product needs: what pyproject.toml asks for without its extras.

python product_lock.py pyproject.toml requirements.lock
"""

import re
import sys
import tomllib
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9._-]+")
#: In the lock each package is followed by whom it is there for: `# via kombu`, or one such name per comment line.
_WANTED_BY = re.compile(r"^ +# +(?:via +)?([\w.-]+)", re.MULTILINE)


def product_lock(*, pyproject: str, lock: str) -> str:
    """The lock's entries, unchanged, of the product's requirements and of everything these require."""
    # One package can have several entries, each for other versions of Python.
    entries = [(_name(entry), entry) for entry in re.split(r"^(?=\w)", lock, flags=re.MULTILINE) if _NAME.match(entry)]
    needed = {_name(requirement) for requirement in tomllib.loads(pyproject)["project"]["dependencies"]}
    while True:
        more = {name for name, entry in entries if needed.intersection(_WANTED_BY.findall(entry))}
        if more <= needed:
            return "".join(entry for name, entry in entries if name in needed)
        needed |= more


def _name(requirement: str) -> str:
    found = _NAME.match(requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


if __name__ == "__main__":
    sys.stdout.write(product_lock(pyproject=Path(sys.argv[1]).read_text(), lock=Path(sys.argv[2]).read_text()))
