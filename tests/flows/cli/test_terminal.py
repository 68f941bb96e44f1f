"""What a terminal, a file or a pipe cannot take changes no verdict; and nothing a stranger wrote steers a terminal."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer
from rich.table import Table
from rich.text import Text

from flows.cli.console import Outcome, carry_out, json_text, run
from flows.cli.terminal import Output, PlainConsole
from vetgate.errors import Denied
from vetgate.formats.plain_text import escaped, steering

CODES = (0, 1, 3, 5)
LATIN = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
LINE = "expected stdout to take the outcome"


def written(descriptor: int, like: object = None) -> Output:
    """A stream that was given more than any buffer holds."""
    output = Output(descriptor, like)
    for _ in range(300):
        print("x" * 1000, file=output)
    return output


@pytest.mark.parametrize("code", CODES)
def test_on_a_full_disk_every_outcome_is_an_error(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    assert written(descriptor).settled(code) == 2
    assert capsys.readouterr().err.count("\n") == 1
    os.close(descriptor)


@pytest.mark.parametrize("code", CODES)
def test_with_stdout_closed_every_outcome_is_an_error(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    assert written(descriptor).settled(code) == 2 and LINE in capsys.readouterr().err
    os.close(descriptor)


@pytest.mark.parametrize("code", CODES)
def test_a_reader_that_went_away_changes_no_code(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert written(writer).settled(code) == code and capsys.readouterr().err == ""
    os.close(writer)


def test_what_was_not_written_to_is_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    assert Output(descriptor, None).settled(3) == 3 and capsys.readouterr().err == ""
    os.close(descriptor)


def test_a_pipe_that_does_not_block_gets_everything() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    got: list[bytes] = []

    def read() -> None:
        while chunk := os.read(reader, 1 << 16):
            got.append(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    assert written(writer).settled(3) == 3
    os.close(writer)
    thread.join(10)
    assert sum(map(len, got)) == 300 * 1001
    os.close(reader)


@pytest.mark.parametrize(
    ("text", "like", "expected"),
    [
        ("日本 – x", LATIN, rb"\u65e5\u672c - x"),
        ("Müller", LATIN, "Müller".encode("latin-1")),
        ("Müller", io.TextIOWrapper(io.BytesIO(), encoding="ascii"), rb"M\xfcller"),
        ("file \udcff", None, rb"file \udcff"),
        ("日本", None, "日本".encode()),
    ],
)
def test_what_an_encoding_lacks_is_written_out(tmp_path: Path, text: str, like: object, expected: bytes) -> None:
    with (tmp_path / "out").open("wb") as file:
        output = Output(file.fileno(), like)
        print(text, file=output)
        assert output.settled(3) == 3
    assert (tmp_path / "out").read_bytes() == expected + b"\n"


@pytest.mark.parametrize("hostile", ["\x1b[2J\x1b]0;x\x07", "\u202eTSENOH\u202c", "a\x00\x9b31m", "[bold]x[/bold]"])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_shows_text_as_text(hostile: str, terminal: bool) -> None:
    text = io.StringIO()
    console = PlainConsole(file=text, width=100, force_terminal=terminal, color_system="standard" if terminal else None)
    table = Table("name", hostile)
    table.add_row(hostile, Text(hostile, style="red"))
    console.print(table)
    console.print(hostile, style="red")
    console.print(Text(hostile))
    said = text.getvalue()
    assert escaped(hostile) in said and ("\x1b[31m" in said) == terminal
    for styling in ("\x1b[0m", "\x1b[1m", "\x1b[31m"):
        said = said.replace(styling, "")
    assert all(steering(line) is None for line in said.split("\n"))


def test_json_is_ascii_without_controls() -> None:
    text = json_text({"a": "\x1b\x7f\x9b\u202e\ud800", "b": "é"})
    assert text == r'{"a": "\u001b\u007f\u009b\u202e\ud800", "b": "\u00e9"}'


@pytest.mark.parametrize(
    "error", [SystemExit(1), RuntimeError("x"), OSError(28, "full"), BrokenPipeError(), MemoryError()]
)
def test_whatever_a_command_did_not_foresee_is_2(error: BaseException, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("VETGATE_HOME", str(tmp_path))

    def command() -> Outcome:
        raise error

    def unshown(console: object) -> None:
        raise error

    assert carry_out(command, as_json=True) == 2
    assert carry_out(lambda: Outcome(1, {}, unshown), as_json=False) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_a_command_line_that_breaks_outside_its_commands_ends_with_2(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("VETGATE_HOME", str(tmp_path))
    app = typer.Typer()

    @app.command()
    def broken(code: str) -> int:
        if code == "denied":
            raise Denied("no")
        raise SystemExit(int(code))

    assert [run(app, [code]) for code in ("1", "3", "denied")] == [2, 2, 1]
    assert run(app, ["--no-such-option"]) == 4 and "Traceback" not in capfd.readouterr().err


# a command of its own process that ends with the code it is given, after more text than a pipe holds
ENDS = """
import sys
from flows.cli.console import Outcome, carry_out, run
import typer
app = typer.Typer()
@app.command()
def end(code: int, json: bool = False) -> int:
    text = "日本 \\x1b[2J" * 20000
    return carry_out(lambda: Outcome(code, {"text": text}, lambda console: console.print(text)), as_json=json)
sys.exit(run(app, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("how", "code", "expected"),
    [
        ("3 > /dev/full", 3, 2),
        ("1 --json > /dev/full", 1, 2),
        ("3 >&-", 3, 2),
        ("0 --json >&- 2>&- <&-", 0, 2),
        ("3 2>&-", 3, 3),
        ("5 2> /dev/full", 5, 5),
        ("3 | true", 3, 3),
        ("0 --json | head -c 10", 0, 0),
        ("1 | head -1", 1, 1),
    ],
)
def test_the_code_of_a_verdict_survives(tmp_path: Path, how: str, code: int, expected: int) -> None:
    (tmp_path / "ends.py").write_text(ENDS)
    command = shlex.join([sys.executable, str(tmp_path / "ends.py")])
    own = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONIOENCODING": "ascii" if "true" in how else "utf-8"}
    reader, writer = os.pipe()
    script = ["bash", "-c", f"{command} {how}; echo ${{PIPESTATUS[0]}} >&{writer}"]
    done = subprocess.run(script, env=own, pass_fds=[writer], capture_output=True, timeout=120)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert int(said.read()) == expected
    told = expected != code and "2>&-" not in how
    assert b"Traceback" not in done.stderr and done.stderr.count(LINE.encode()) == told


@pytest.mark.parametrize("given", ["--help > /dev/full", "data list > /dev/full", "vett --json > /dev/full"])
def test_no_command_ends_with_1_where_it_cannot_say_anything(tmp_path: Path, given: str) -> None:
    own = os.environ | {"VETGATE_HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m flows {given}"], env=own, capture_output=True, timeout=120
    )
    assert done.returncode == 2 and b"Traceback" not in done.stderr


def test_an_installation_that_is_not_whole_ends_with_2() -> None:
    broken = "import sys; sys.modules['typer'] = None; from flows.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, timeout=120)
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: expected vetgate whole")
        and "\n" not in done.stderr[:-1]
    )
