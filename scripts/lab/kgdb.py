"""The `kgdb` guest: compiled from Debian's linux-source, with KGDB and every detector of faults."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from lab import builds, cache, debian, debugfiles, kconfig, lifetime, modules
from lab.errors import LabError
from lab.progress import Step

NAME = "kgdb"
_SOURCE = "linux-source-6.1"
_FRAGMENT = Path(__file__).with_name("kgdb.config")
MODULES = ("dummy", "crc7", "isofs", "vfat")
# A soft lockup is reported after 8 to 10 s. An RCU stall must come later: its report makes the soft lockup detector
# start anew. SLUB without user tracking, which unwinds the stack at each allocation: under emulation the boot would
# take 14 s instead of 4.
APPEND = "watchdog_thresh=4 rcupdate.rcu_cpu_stall_timeout=15 slub_debug=FZP"
_LAYOUT = 2

# Headers of graphics drivers, a fifth of the source; no Kconfig file is among them.
_LEFT_PACKED = "*/drivers/gpu/drm/amd/include"
_TARGETS = ("bzImage", "modules", "scripts_gdb")
# The folder that the debug information names instead of the temporary one.
_SOURCE_FOLDER = f"/usr/src/{_SOURCE}"
_MAKE = (
    f"KCFLAGS=-ffile-prefix-map={{tree}}={_SOURCE_FOLDER}",
    f"KAFLAGS=-ffile-prefix-map={{tree}}={_SOURCE_FOLDER}",
    "KBUILD_BUILD_USER=kbridge",
    "KBUILD_BUILD_HOST=guest",
)
_TOOLS = {
    "make": "make", "gcc": "gcc", "ld": "binutils", "flex": "flex", "bison": "bison", "bc": "bc",
    "pahole": "dwarves", "xz": "xz-utils", "cpio": "cpio", "perl": "perl",
}  # fmt: skip
_STEP_LINE = re.compile(r"  ([A-Z][A-Z0-9 \[\]]*?) +(\S.*)")


def build() -> builds.Build:
    with cache.locked(NAME) as base:
        source = debian.package(_SOURCE)
        recipe = json.dumps([_LAYOUT, MODULES, _LEFT_PACKED, _TARGETS, _MAKE])
        key = builds.key(source.version, recipe, _FRAGMENT.read_text())
        entry = cache.ensure(base, key, lambda new: _make(source, new))
        made = builds.load(entry)
        builds.refresh_initramfs(made)
    return made


def _make(source: debian.Package, folder: Path) -> None:
    require_tools()
    require_path(folder.parent)
    work = folder / "work"
    work.mkdir()
    tree = _unpack(debian.download(source, work), work)
    environment = _environment(tree)
    _configure(tree, environment)
    _compile(tree, environment, folder.parent / "build.log")
    release = _output(["make", "-s", "kernelrelease"], tree, environment)
    _keep(tree, folder, environment, source.version, release)
    shutil.rmtree(work)


def require_tools() -> None:
    """Raises LabError that names the packages of all missing programs at once."""
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    missing += [] if Path("/usr/include/libelf.h").exists() else ["libelf-dev"]
    if missing:
        raise LabError(f"cannot compile a kernel; run: sudo apt-get install {' '.join(missing)}")


def require_path(folder: Path) -> None:
    """Raises LabError if the kernel's Makefile would refuse to build below a folder, before it is downloaded."""
    if re.search(r"[\s:]", str(folder.resolve())):
        raise LabError(
            f"Linux cannot be built below {folder}: its Makefile refuses spaces and colons; set XDG_CACHE_HOME"
        )


def _unpack(deb: Path, work: Path) -> Path:
    debian.pipeline(
        f"{_SOURCE}: unpack",
        ["dpkg-deb", "--fsys-tarfile", str(deb)],
        ["tar", "-x", "-O", f".{_SOURCE_FOLDER}.tar.xz"],
        ["tar", "-x", "-J", "--no-same-owner", f"--exclude={_LEFT_PACKED}"],
        cwd=work,
    )
    deb.unlink()
    return work / _SOURCE


def _environment(tree: Path) -> dict[str, str]:
    """The build's environment: the caller's PATH, and nothing else of the caller."""
    built = int((tree / "Makefile").stat().st_mtime)
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "LC_ALL": "C",
        "SOURCE_DATE_EPOCH": str(built),
        "KBUILD_BUILD_TIMESTAMP": time.strftime("%a %b %e %H:%M:%S UTC %Y", time.gmtime(built)),
    }


def _output(command: list[str], tree: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed: {debian.last_line(done.stderr)}")
    return done.stdout.strip()


def _configure(tree: Path, environment: dict[str, str]) -> None:
    _output(["make", "tinyconfig"], tree, environment)
    _output(["scripts/kconfig/merge_config.sh", "-m", ".config", str(_FRAGMENT)], tree, environment)
    _output(["make", "olddefconfig"], tree, environment)
    lost = kconfig.lost(_FRAGMENT.read_text(), (tree / ".config").read_text())
    if lost:
        raise LabError(f"this kernel did not take all of {_FRAGMENT.name}: {'; '.join(lost)}")


def _compile(tree: Path, environment: dict[str, str], log_path: Path) -> None:
    jobs = len(os.sched_getaffinity(0))
    variables = [text.format(tree=tree) for text in _MAKE]
    command = ["make", f"-j{jobs}", *variables, *_TARGETS]
    with Step(f"kgdb: compile Linux with {jobs} jobs, some minutes") as step, log_path.open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # At SIGTERM make ends its compilers and removes what is half written.
            preexec_fn=lifetime.child_setup(ending=signal.SIGTERM),  # noqa: PLW1509 - one thread
        )
        assert process.stdout is not None
        try:
            for count, line in enumerate(process.stdout, start=1):
                log.write(line)
                if match := _STEP_LINE.match(line):
                    step.update(f"{count} {match[1]} {match[2]}")
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if status:
            raise LabError(f"the kernel did not compile; see {log_path}")


def _keep(tree: Path, folder: Path, environment: dict[str, str], version: str, release: str) -> None:
    """Move what a guest and its debuggers need out of the build tree."""
    for path, name in (
        (tree / "arch" / "x86" / "boot" / "bzImage", "bzImage"),
        (tree / "vmlinux", "vmlinux"),
        (tree / "System.map", "System.map"),
        (tree / ".config", "config"),
        (tree / "scripts" / "gdb" / "vmlinux-gdb.py", "vmlinux-gdb.py"),
    ):
        path.rename(folder / name)
    # gdb loads vmlinux-gdb.py because it lies beside vmlinux; that one looks for the rest beside itself.
    scripts = folder / "scripts" / "gdb" / "linux"
    scripts.mkdir(parents=True)
    for path in (tree / "scripts" / "gdb" / "linux").glob("*.py"):
        path.rename(scripts / path.name)

    stripped, debug = folder / "modules", folder / "debug"
    stripped.mkdir()
    debug.mkdir()
    chosen = modules.select(tree, MODULES)
    for path in chosen:
        _output(["strip", "--strip-debug", "-o", str(stripped / path.name), str(path)], tree, environment)
        path.rename(debug / path.name)
    debugfiles.link(debug, [folder / "vmlinux", *debug.glob("*.ko")])
    builds.Description(
        name=NAME,
        version=version,
        release=release,
        kernel="bzImage",
        vmlinux="vmlinux",
        modules=tuple(modules.canonical(path.stem) for path in chosen),
    ).write(folder)
