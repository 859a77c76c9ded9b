"""Names and contents that strangers made reach a terminal as text, never as orders."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from gq.cli.output import Output, visible
from measured import dt_config, write_run

ORDERS = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202eevil\u2066\x00\x7f"


def test_everything_a_terminal_obeys_is_shown_and_other_letters_stay() -> None:
    shown = visible(ORDERS)
    assert shown == r"\x1b]0;owned\x07\x1b[31mred\x9b2J\u202eevil\u2066\x00\x7f"
    assert visible("größe 3 · ⣿ ± 5 %\nnext\u00a0line") == "größe 3 · ⣿ ± 5 %\nnext\u00a0line"
    assert visible("a\nb", kept="") == r"a\nb"
    assert visible(os.fsdecode(b"caf\xe9")) == r"caf\udce9"


def test_each_way_to_say_something_shows_orders(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Group
    from rich.text import Text

    output = Output()
    output.note(ORDERS)
    output.warn(ORDERS)
    output.result({}, quiet="", human=ORDERS)
    table = output.table(["run", "n"], [[f"x{ORDERS}\nnew row", "1"]])
    output.result({}, quiet="", human=Group(table, ORDERS, Text(ORDERS)))
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert r"\nnew row" in captured.out
    assert captured.out.count("owned") == 4
    Output(json_mode=True).result({"name": ORDERS}, quiet="", human="")
    assert "\\u001b]0;owned" in capsys.readouterr().out


def on_terminal(*arguments: object, home: Path) -> str:
    """Return what a command writes to a terminal."""
    parent, child = pty.openpty()
    environment = {**os.environ, "GQ_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "300", "TERM": "dumb"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gq", *map(str, arguments)], stdin=child, stdout=child, stderr=child, env=environment
    )
    os.close(child)
    found = b""
    while True:
        try:
            part = os.read(parent, 65_536)
        except OSError:  # the last writer is gone
            break
        if not part:
            break
        found += part
    os.close(parent)
    assert process.wait() in (0, 1, 2)
    return found.decode(errors="replace")


def test_a_hostile_run_and_dataset_give_a_terminal_no_orders(tmp_path: Path) -> None:
    home = tmp_path / "home"
    name = "run\x1b]0;owned\x07\u202e"
    write_run(home / "runs" / name, dt_config(**{"data.dataset": f"/data/{ORDERS.replace(chr(0), '')}.hdf5"}))
    data = tmp_path / "d\x1b[2Jata.hdf5"
    with h5py.File(data, "w") as root:
        root.attrs["env_id"] = "Hopper\x1b[31m-v5"
        root["observations"], root["actions"] = np.zeros((4, 11)), np.zeros((4, 3))
        root["rewards"], root["terminals"] = np.zeros(4), np.array([0, 0, 0, 1], bool)
    for command in (["runs"], ["runs", "show", home / "runs" / name], ["repair", data], ["eval", home / "runs" / name]):
        text = on_terminal(*command, home=home)
        assert "owned" in text or "Hopper" in text or "ata.hdf5" in text, command
        orders = [letter for letter in text if not (letter.isprintable() or letter in "\r\n")]
        assert orders == [], (command, orders)
