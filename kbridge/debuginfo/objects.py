"""What a guest's debuggers read beside the guest: the main file, the list of modules, and their files.

in          what a session asks for, by kind and name (``gdbstubs.server.Library``)
out         contents, each question answered once, after ``ANSWER_SECONDS`` with "there is none"; what is found later
            is told with the next stop
invariant   the name of a file tells its contents: a kernel or module elsewhere has another name; what changed since a
            session was given it is told with its next stop
"""

from __future__ import annotations

import binascii
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TypeVar
from xml.sax.saxutils import quoteattr

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from gdbstubs.modes import Mode
from kbridge.debuginfo import kept_files
from kbridge.debuginfo.kernel import GuestKernel, Kernel, Memory, Unwind
from kbridge.debuginfo.mapping import mapped
from kbridge.debuginfo.separate import link_debug_file
from kbridge.errors import GuestError, KbridgeError
from symbols import elf, orc, skeleton
from symbols.belief import Sighting, Verdict, judge
from symbols.debug_frame import debug_frame
from symbols.errors import SymbolError
from symbols.memory_skeleton import bare_module, kallsyms_skeleton

if TYPE_CHECKING:
    from pathlib import Path

    from kbridge.debuginfo.claims import Claims
    from kbridge.debuginfo.debuginfod import Debuginfod
    from kbridge.debuginfo.fetching import Fetcher
    from kbridge.debuginfo.finders import Finder
    from symbols.elf import Image
    from symbols.model import BuildId, Module
    from symbols.module_symbols import ModuleSymbol
    from symbols.modules import ModuleList
    from symbols.orc import OrcLayout

ANSWER_SECONDS: Final = 4.5
"""gdb waits three times two seconds for such a reply (gdb 13 and 18, tried: 5.7 s is in time, 7 s is not)."""
WORK_SECONDS: Final = 30.0
"""How long the guest's memory is read for one question, whether or not it is still waited for."""
WORDS_SECONDS: Final = 20.0
"""How long who asks in words waits: a program that asked gives up after 30 s."""
MOST_BYTES: Final = 64 << 20
"""Of made files that are kept."""
MOST_SESSIONS: Final = 256
_NO_FILE: Final = "none of this build-id: names and unwinding are the kernel's own, out of its memory"
_ENTRIES: Final = ".orc_unwind"
_PLACES: Final = ".orc_unwind_ip"
_FOLDER: Final = PurePosixPath("/kbridge")
_MODULES: Final = _FOLDER / "modules"
_FIRMWARE: Final = str(_FOLDER / "firmware")
_NO_SYMBOLS: Final = b"S0030000FC\r\nS9030000FC\r\n"
"""S-records of nothing: an ELF file would name an architecture, which gdb then prefers to the description's i8086."""

_Found = TypeVar("_Found")


def _nobody(kind: str, fields: dict[str, Any]) -> None:
    """Stand in for a time line."""


@dataclass(slots=True)
class _Told:
    """What one session was given."""

    main: str | None = None
    modules: ModuleList | None = None
    has_asked_for_modules: bool = False


class DebuggerObjects:
    """What the debuggers of one guest are served; the module's text says how.

    ``links``: a folder for debug files, as gdb looks for them by build-id, in which the files that were found are named
    so: a distribution's are not.  Without ``quick`` memory is read over a slow line: modules are not listed, and a
    kernel whose file nobody has is not asked for what it says of itself.  ``servers`` are asked for a file that is not
    at hand.  ``claims``: what others say of where the kernel is.  ``sink``
    takes events for the time line.  ``kernel``: what is known of the kernel, where somebody else looks at it too.
    ``kept``: a folder for main files, so that the next process that serves the same need not make them.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        guest: str,
        memory: Memory,
        finder: Finder,
        links: Path,
        *,
        quick: bool = True,
        servers: Debuginfod | None = None,
        claims: Claims | None = None,
        sink: Callable[[str, dict[str, Any]], None] = _nobody,
        kernel: GuestKernel | None = None,
        kept: Path | None = None,
    ) -> None:
        self._reactor = reactor
        self._quick = quick
        self._turn = DeferredLock()
        """One looks at the guest's memory at a time: the others find it known."""
        self._links = links
        self._kept = kept
        self._guest = guest
        self._finder = finder
        self._kernel = kernel or GuestKernel(memory, finder, self._in_thread, claims, quick=quick)
        self._servers = servers
        self._sink = sink
        self._seen: Sighting | None = None
        self._fetcher = None if servers is None else self._fetching(servers)
        self._wanted: BuildId | None = None
        """The kernel that was asked for last."""
        self._told: OrderedDict[str, _Told] = OrderedDict()
        self._makers: OrderedDict[str, Callable[[], bytes]] = OrderedDict()
        self._made: OrderedDict[str, bytes] = OrderedDict()
        self.problem = ""
        """Why nothing is served, where nothing is."""

    def _in_thread(self, work: Callable[[], Any]) -> Awaitable[Any]:
        found: Deferred[Any] = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)
        return found

    def _fetching(self, servers: Debuginfod) -> Fetcher:
        # It loads Twisted's HTTP and TLS, which takes longer than to find a kernel in an image.
        from kbridge.debuginfo.fetching import Fetcher  # noqa: PLC0415

        return Fetcher(self._reactor, self._guest, servers, self._came)

    def ask(self, session: str, kind: str, key: str, done: Callable[[bytes | None], None]) -> None:
        """Answer a session's question, now or later, once."""
        work: Deferred[bytes | None] = Deferred.fromCoroutine(self._answer(session, kind, key))
        work.addTimeout(WORK_SECONDS, self._reactor)
        is_late = False

        def late() -> None:
            nonlocal is_late
            is_late = True
            # What is found later is told with the next stop.
            told = self._session(session)
            told.main = told.modules = None
            done(None)

        timer = self._reactor.callLater(ANSWER_SECONDS, late)

        def found(contents: bytes | None) -> None:
            if is_late:
                told = self._session(session)
                told.main = told.modules = None
            else:
                timer.cancel()
                done(contents)

        def failed(failure: Any) -> None:
            if failure.check(DeferredTimeout):
                self._note(f"the guest's memory was not read within {WORK_SECONDS:g} s")
            elif failure.check(KbridgeError, SymbolError, OSError):
                self._note(str(failure.value))
            else:
                self._log.failure("{guest}: a bug", failure, guest=self._guest)

        work.addErrback(failed)
        work.addCallback(found)
        work.addErrback(lambda failure: self._log.failure("{guest}: a bug", failure, guest=self._guest))

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._log.info("{guest}: debuggers are served no symbols: {why}", guest=self._guest, why=problem)

    async def _answer(self, session: str, kind: str, key: str) -> bytes | None:
        match kind:
            case "file":
                return await self._file(key)
            case "main-file" if key != Mode.LONG.value:
                return self._firmware(self._session(session))
            case "main-file" | "exec-file" | "libraries" | "changes":
                await self._turn.acquire()
                try:
                    return await self._answer_of_memory(self._session(session), kind)
                finally:
                    self._turn.release()
            case _:
                return None

    async def _answer_of_memory(self, told: _Told, kind: str) -> bytes | None:
        match kind:
            case "exec-file":
                return await self._main_file(told)
            case "libraries":
                return await self._libraries(told)
            case "main-file":
                try:
                    return await self._main_file(told)
                except (SymbolError, KbridgeError):
                    # A boot loader, or a kernel that has not come to its own addresses: told when it has.
                    return self._firmware(told)
            case _:
                return await self._changes(told)

    def _session(self, name: str) -> _Told:
        told = self._told.setdefault(name, _Told())
        self._told.move_to_end(name)
        while len(self._told) > MOST_SESSIONS:
            self._told.popitem(last=False)
        return told

    # -- the kernel -----------------------------------------------------------------------------------------

    async def _main_file(self, told: _Told) -> bytes | None:
        told.main, told.modules = None, None
        kernel = await self._look()
        told.main = self._name_main(kernel)
        return told.main.encode()

    def _firmware(self, told: _Told) -> bytes:
        """Name the main file of a guest in which no kernel runs yet."""
        told.main, told.modules = _FIRMWARE, None
        self._offer(_FIRMWARE, lambda: _NO_SYMBOLS)
        return _FIRMWARE.encode()

    async def _look(self) -> Kernel:
        kernel = await self._kernel.look()
        self.problem = ""
        self._announce(kernel)
        if kernel.path is None and self._fetcher is not None:
            self._wanted = kernel.where.build_id
            self._fetcher.want((self._wanted,))
        return kernel

    def _announce(self, kernel: Kernel) -> None:
        """Put a kernel on the time line that is not what was there before."""
        now = Sighting(kernel.where.build_id, kernel.where.notes)
        verdict = judge(self._seen, now)
        if verdict is not Verdict.SAME:
            self._seen = now
            slide = None if kernel.slide is None else hex(kernel.slide)
            what: dict[str, Any] = {
                "what": verdict.value,
                "build_id": now.build_id,
                "slide": slide,
                "way": kernel.way,
            }
            self._sink("kernel.found", {name: value for name, value in what.items() if value is not None})

    def _came(self, build_id: BuildId, path: Path) -> None:
        """Serve a file that was fetched: what was made without it has the same name."""
        if build_id == self._wanted:
            self._finder.offer(path)
            self._kernel.forget()
            self._made.clear()
            return
        for name in [one for one in self._made if one.startswith(str(_MODULES))]:
            del self._made[name]
        for told in self._told.values():
            told.modules = None

    def _name_main(self, kernel: Kernel) -> str:
        build_id = kernel.where.build_id
        # Where it is tells two boots apart, whether or not it is known where it was linked.
        name = str(_FOLDER / f"vmlinux-{build_id[:12]}@{kernel.where.notes:x}")

        def make() -> bytes:
            if kernel.path is None:
                assert kernel.own is not None, "a kernel has a file, or its own tables"
                unwinding = _unwinding(kernel.unwinding, kernel.own.unwind, 0)
                return kallsyms_skeleton(
                    kernel.own.symbols, (kernel.where.notes, kernel.own.notes), unwinding
                )
            with mapped(kernel.path) as image:
                if elf.build_id(image) != build_id:
                    raise SymbolError(f"{kernel.path} was changed: its build-id is no longer {build_id}")
                link_debug_file(self._links, build_id, kernel.path, image)
                slide = kernel.slide or 0

                def made() -> bytes:
                    unwinding = _unwinding(kernel.unwinding, _unwind_in(image), -slide)
                    return skeleton.vmlinux_skeleton(image, slide, unwinding)

                if self._kept is None:
                    return made()
                size = kernel.path.stat().st_size
                return kept_files.kept(self._kept, kept_files.main_file(build_id, slide, size), made)

        self._offer(name, make)
        return name

    # -- its modules ----------------------------------------------------------------------------------------

    async def _libraries(self, told: _Told) -> bytes:
        if not self._quick:
            return libraries_xml([])
        told.has_asked_for_modules = True
        kernel = await self._look()
        found = await self._kernel.modules(kernel)
        paths = await self._in_thread(
            lambda: [self._finder.module(one.name, one.build_id) for one in found.modules]
        )
        if self._fetcher is not None:
            self._fetcher.want(
                one.build_id
                for one, path in zip(found.modules, paths, strict=True)
                if path is None and one.build_id is not None
            )
        unwinds = await self._kernel.module_unwinds(found.modules)
        alone = tuple(one for one, path in zip(found.modules, paths, strict=True) if path is None)
        symbols = dict(zip(alone, await self._kernel.module_symbols(alone), strict=True))
        modules = [
            _ModuleFile(one, path, kernel.unwinding, unwind, symbols.get(one, ()), self._links)
            for one, path, unwind in zip(found.modules, paths, unwinds, strict=True)
        ]
        for one in modules:
            self._offer(one.name, one.make)
        contents = [await self._file(one.name) or b"" for one in modules]
        told.modules = found
        return libraries_xml(
            [(one.name, one.addresses(data)) for one, data in zip(modules, contents, strict=True)]
        )

    async def prepare(self) -> None:
        """Read what each session asks for first, while nobody has asked; never raises what a memory is the cause of."""
        async with self._turn:
            try:
                await self._libraries(_Told())
            except (SymbolError, KbridgeError, OSError) as error:
                # Who asks is told so then.
                self._log.debug("{guest}: nothing is prepared: {why}", guest=self._guest, why=str(error))

    # -- files ----------------------------------------------------------------------------------------------

    def _offer(self, name: str, make: Callable[[], bytes]) -> None:
        self._makers[name] = make
        self._makers.move_to_end(name)
        while len(self._makers) > 2 * MOST_SESSIONS:
            self._makers.popitem(last=False)

    async def _file(self, name: str) -> bytes | None:
        made = self._made.get(name)
        if made is not None:
            self._made.move_to_end(name)
            return made
        make = self._makers.get(name)
        if make is None:
            return None
        contents: bytes = await self._in_thread(make)
        self._made[name] = contents
        while sum(map(len, self._made.values())) > MOST_BYTES and len(self._made) > 1:
            self._made.popitem(last=False)
        return contents

    # -- what changed ---------------------------------------------------------------------------------------

    async def _changes(self, told: _Told) -> bytes:
        kernel = await self._look()
        changes = []
        name = self._name_main(kernel)
        if name != told.main:
            changes.append(b"exec:" + binascii.hexlify(name.encode()))
            told.main, told.modules = name, None
        if told.has_asked_for_modules:
            found = await self._kernel.modules(kernel)
            if told.modules is None or found.nodes != told.modules.nodes:
                changes.append(b"library:")
                told.modules = found
        return b" ".join(changes)

    async def is_elsewhere(self) -> bool:
        """Tell whether a kernel runs that a session was not told of, while the guest goes on."""
        async with self._turn:
            try:
                await self._kernel.has_booted()
                name = self._name_main(await self._look())
            except (SymbolError, KbridgeError, OSError):
                # Not yet, or not to be read: the next look, or the next stop, tells.
                return False
        return any(told.main not in (None, name) for told in self._told.values())

    # -- what a user asks -----------------------------------------------------------------------------------

    async def describe(self) -> str:
        """Say in words which kernel the guest runs and where its symbols are from."""
        try:
            kernel = await self._in_time(self._look())
        except (SymbolError, KbridgeError) as error:
            lines = [f"no symbols: {error}"]
        else:
            slide = (
                "unknown: no file tells where it was linked" if kernel.slide is None else hex(kernel.slide)
            )
            lines = [
                f"kernel     build-id {kernel.where.build_id}",
                f"file       {kernel.path or _NO_FILE}",
                f"slide      {slide}",
                f"found by   {kernel.way}; its build-id was read back",
            ]
            files = await self._in_thread(self._finder.kernels)
            lines.extend(
                f"not used   {one.path}: it is of build-id {one.linked.build_id}, not of {kernel.where.build_id}"
                for one in files
                if one.linked.build_id != kernel.where.build_id
            )
        lines.extend(f"not used   {path}: {why}" for path, why in self._finder.problems.items())
        for one in () if self._servers is None else self._servers.underway:
            size = "" if one.size is None else f" of {one.size:,}"
            lines.append(f"fetching   {one.got:,}{size} bytes of build-id {one.build_id}")
        return "\n".join(lines) + "\n"

    async def _loaded(self) -> ModuleList:
        return await self._kernel.modules(await self._look())

    async def _in_time(self, work: Coroutine[Any, Any, _Found]) -> _Found:
        """Wait for what is read of the guest.  Raises ``GuestError`` when it takes too long."""
        reading: Deferred[_Found] = Deferred.fromCoroutine(work)
        try:
            return await reading.addTimeout(WORDS_SECONDS, self._reactor)
        except DeferredTimeout:
            raise GuestError(
                f"the guest's memory was not read within {WORDS_SECONDS:g} s",
                todo="is its host very busy? Try again, or while the guest stands",
            ) from None

    async def describe_modules(self) -> str:
        """List the loaded modules: name, address, size, file."""
        try:
            found = await self._in_time(self._loaded())
        except (SymbolError, KbridgeError) as error:
            return f"no list of modules: {error}\n"
        width = max((len(one.name) for one in found.modules), default=4)
        lines = [f"{'name':{width}}  {'address':18}  {'bytes':>9}  file"]
        for one in found.modules:
            path = await self._in_thread(partial(self._finder.module, one.name, one.build_id))
            lines.append(f"{one.name:{width}}  {one.base:#018x}  {one.size:9}  {path or 'none found'}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class _ModuleFile:
    """A module and what its file is made of."""

    module: Module
    path: Path | None
    unwinding: OrcLayout | None
    unwind: Unwind | None
    symbols: tuple[ModuleSymbol, ...]
    links: Path

    @property
    def name(self) -> str:
        return str(_MODULES / f"{self.module.base:x}" / f"{self.module.name}.ko")

    def make(self) -> bytes:
        """Make the file; in a thread, because it is read and written there."""
        places = {one.name: one.address for one in self.module.sections}
        base, size = self.module.base, self.module.size
        unwinding = _unwinding(self.unwinding, self.unwind, 0)
        if self.path is None:
            return bare_module(places, base, size, self.symbols, unwinding)
        with mapped(self.path) as image:
            if self.module.build_id is not None:
                link_debug_file(self.links, self.module.build_id, self.path, image)
            return skeleton.module_skeleton(image, places, unwinding)

    def addresses(self, contents: bytes) -> list[int]:
        """Return where the sections of the file are that was made."""
        places = {one.name: one.address for one in self.module.sections}
        return [places.get(one, self.module.base) for one in skeleton.allocated(contents)] if contents else []


def _unwinding(layout: OrcLayout | None, unwind: Unwind | None, origin: int) -> bytes:
    """Return the ``.debug_frame`` for unwind tables, addresses counted from ``origin``; none where there are none."""
    if layout is None or unwind is None:
        return b""
    try:
        return debug_frame(layout, unwind.entries, orc.places(unwind.places, unwind.at), origin)
    except SymbolError:
        # Kernels before 5.4 sort their tables while they boot; names are worth having without.
        return b""


def _unwind_in(image: Image) -> Unwind | None:
    """Return the unwind tables in a kernel's file, addresses as linked."""
    found = {one.name: one for one in elf.sections(image) if one.name in (_ENTRIES, _PLACES)}
    if len(found) < 2 or any(one.kind == elf.SHT_NOBITS for one in found.values()):
        return None
    for one in found.values():
        elf.check_inside(image, one)
    entries, places = found[_ENTRIES], found[_PLACES]
    return Unwind(
        image[entries.offset : entries.offset + entries.size],
        places.address,
        image[places.offset : places.offset + places.size],
    )


def libraries_xml(files: list[tuple[str, list[int]]]) -> bytes:
    """Return the document of ``qXfer:libraries:read`` (GDB manual, "Library List Format").

    ``files``: for each its name, and the address of each allocated section, in the file's order.  An entry without any
    makes gdb refuse the whole list.
    """
    lines = ["<library-list>"]
    for name, addresses in files:
        if addresses:
            places = "".join(f'<section address="{address:#x}"/>' for address in addresses)
            lines.append(f"<library name={quoteattr(name)}>{places}</library>")
    lines.append("</library-list>")
    return "\n".join(lines).encode()
