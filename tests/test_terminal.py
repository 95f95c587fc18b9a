"""Standard streams whose reader goes away, stops reading or never was."""

import io
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from typing import cast

import pytest

from mutoscope.terminal import CHUNK, LastingStream, lasting_output, message_notice


@pytest.fixture
def pipe() -> Iterator[tuple[int, io.TextIOWrapper]]:
    """The reading end of a pipe, and a text stream on the writing end."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", encoding="utf-8")
    yield reader, stream
    stream.close()


def test_a_reader_that_goes_away_ends_nothing(pipe):
    reader, stream = pipe
    lasting = LastingStream(stream, patience=0.0)
    print("seen", file=lasting)
    assert os.read(reader, 100) == b"seen\n" and lasting.notice() is None
    os.close(reader)
    for _ in range(3):
        print("unseen", file=lasting, flush=True)
    assert lasting.lost == "Broken pipe" and "gone (Broken pipe)" in str(lasting.notice())


def test_a_reader_that_never_reads_is_not_waited_for(pipe):
    reader, stream = pipe
    lasting = LastingStream(stream, patience=0.0)
    for _ in range(1000):
        lasting.write("x" * CHUNK)
    assert lasting.dropped > 0 and lasting.lost is None and "behind" in str(lasting.notice())
    while len(os.read(reader, 1 << 20)) == 1 << 20:
        pass
    lasting.write("it reads again")
    assert os.read(reader, 1 << 20).endswith(b"it reads again")
    os.close(reader)


def test_a_closed_terminal_ends_nothing():
    master, slave = pty.openpty()
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        lasting = LastingStream(stream, patience=0.0)
        assert lasting.isatty()
        lasting.write("seen\n")
        os.close(master)
        lasting.write("unseen\n")
        assert lasting.lost is not None and not lasting.isatty()


def test_a_full_disk_loses_a_message_but_not_a_report():
    with open("/dev/full", "w") as stream:
        LastingStream(stream, patience=1.0).write("a message")
        with pytest.raises(OSError, match="No space left"):
            LastingStream(stream, patience=None).write("a report")


def test_streams_of_python_alone_work_too():
    text = io.StringIO()
    print("x", file=LastingStream(text, patience=1.0))
    assert text.getvalue() == "x\n"


def test_both_streams_are_put_back(monkeypatch):
    before = sys.stdout, sys.stderr
    with lasting_output():
        assert isinstance(sys.stderr, LastingStream) and message_notice() is None
        inner = sys.stderr
        with lasting_output():
            assert sys.stderr is inner
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2> >(true)", "> >(true)", "2>/dev/full"])
def test_no_loss_changes_the_status_of_a_verb(closed):
    """The verbs are loaded without torch; the first file that is opened must not become standard error."""
    code = "import sys; from mutoscope.cli import main; sys.exit(main(['--help']) or open('/dev/null').fileno() < 3)"
    done = subprocess.run(["bash", "-c", f'"{sys.executable}" -c "{code}" {closed}'], capture_output=True, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("patience", [None, 1.0])
def test_a_letter_that_a_stream_cannot_write_is_spelled_out_and_loses_nothing(tmp_path, patience):
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        stream = LastingStream(file, patience)
        print("größe", file=stream)
        print("after", file=stream)
        assert stream.lost is None
    assert (tmp_path / "out").read_text() == "gr\\xf6\\xdfe\nafter\n"
    alone = io.TextIOWrapper(io.BytesIO(), encoding="ascii")  # without a descriptor
    print("größe", file=LastingStream(alone, patience))
    alone.flush()
    assert cast(io.BytesIO, alone.buffer).getvalue() == b"gr\\xf6\\xdfe\n"
