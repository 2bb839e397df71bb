"""A real gdb, driven over its machine interface."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from kbridge import gdbmi
from kbridge.errors import GuestError

FAKE = """\
import sys, time
for line in sys.stdin:
    token, _, rest = line.strip().partition("-")
    if "hang" in rest:
        time.sleep(60)
    if "die" in rest:
        sys.exit(3)
    print('~"said\\\\n"')
    print("rubbish " * 10)
    print("999^done")
    print(f"{token}^done")
    sys.stdout.flush()
"""


class Driven(TestCase):
    timeout = 60

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def fake(self) -> str:
        path = self.folder / "gdb"
        path.write_text(f"#!{sys.executable}\n{FAKE}")
        path.chmod(0o700)
        return str(path)

    async def test_commands_are_answered_with_what_they_print(self) -> None:
        program = shutil.which("gdb")
        assert program is not None
        gdb = await gdbmi.start(reactor, program, ["-nx"])
        try:
            assert await gdb.run("print 6 * 7", 20) == "$1 = 42\n"
            assert await gdb.run('printf "a\\tb \\"c\\"\\n"', 20) == 'a\tb "c"\n'
            with pytest.raises(GuestError, match=r'No symbol table is loaded|No symbol "nothing"'):
                await gdb.run("print nothing", 20)
            assert "$1" in await gdb.run("show values", 20)
        finally:
            await gdb.end()
        assert gdb.ended
        with pytest.raises(GuestError, match="has ended"):
            await gdb.run("print 1", 20)
        await gdb.end()

    async def test_one_that_hangs_is_ended_and_one_that_dies_is_noticed(self) -> None:
        program = self.fake()
        gdb = await gdbmi.start(reactor, program)
        assert await gdb.run("x", 20) == "said\n"
        with pytest.raises(GuestError, match="did not answer"):
            await gdb.run("hang", 0.2)
        await gdb.end()
        assert gdb.ended
        gdb = await gdbmi.start(reactor, program)
        with pytest.raises(GuestError, match="gdb has ended"):
            await gdb.run("die", 20)

    async def test_what_cannot_be_run(self) -> None:
        with pytest.raises(GuestError):
            await gdbmi.start(reactor, "/no/such/gdb")

    async def test_no_more_is_kept_than_fits(self) -> None:
        with patch.object(gdbmi, "MOST_TEXT", 3):
            gdb = await gdbmi.start(reactor, self.fake())
            assert await gdb.run("x", 20) == ""
            await gdb.end()
