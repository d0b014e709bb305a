"""Holds `lamella serve` against NVIDIA's Triton: the same repository, the same requests, and the answers must agree.

    make judge                            # makes an environment with Triton, then runs everything
    python tests/against_triton/judge.py PYTHON   # with the interpreter of such an environment

The wheel of nvidia-pytriton carries Triton's server and its Python backend, and `backends/onnxruntime` lets that run
ONNX models. Those of `models.py` are exported by `lamella export-repository`; both servers serve that repository, and
`calls.py` asks them, mostly with Triton's own Python client. Status, names, shapes, datatypes, values and order must
agree; the words of errors need not. Differences that are meant stand in `meant.py` with their reasons, and each of them
must still be there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import models
import servers
from agreement import Meant, differences
from meant import MEANT

from lamella.terminal import Table, Terminal, styled

CALLS = Path(__file__).resolve().parent / "calls.py"
SECONDS = 120.0  # that all calls to a server may take
MOST = 3  # differences of an answer that are told
CLIENTS = ("http", "http aio", "grpc", "grpc aio", "plain")
CODES = {"INVALID_ARGUMENT": "400", "NOT_FOUND": "404", "INTERNAL": "500", "UNAVAILABLE": "503"}  # as HTTP has them

Answers = Mapping[str, Mapping[str, Any]]  # by call and client


def export(folder: Path) -> Path:
    """Write the models, and make a repository of them with the command that users have."""
    repository = folder / "repository"
    for version, files in models.write(folder / "models").items():
        command = ["export-repository", *map(str, files), str(repository), "--version", str(version)]
        done = subprocess.run([sys.executable, "-m", "lamella", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"lamella export-repository failed:\n{done.stdout}{done.stderr}")
    return repository


def add_a_broken_model(repository: Path) -> None:
    """Put a model into the repository that can't be loaded."""
    shutil.copytree(repository / "fixed", repository / "broken")
    for name in ("config.pbtxt", "1/model.onnx"):
        path = repository / "broken" / name
        path.write_bytes(path.read_bytes().replace(b'"fixed"', b'"broken"') if name == "config.pbtxt" else b"nothing")


def ask(python: Path, addresses: tuple[str, str], path: Path) -> Answers:
    """Make all calls to a server."""
    subprocess.run([python, CALLS, *addresses, path], check=True, timeout=SECONDS)
    answers: Answers = json.loads(path.read_text())
    return answers


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of a comparison.

    Attributes:
        table: a row for each call.
        same: how many answers agree.
        meant: how many differ as they are meant to.
        wrong: what else is different, a line each.
    """

    table: Table
    same: int
    meant: int
    wrong: list[str]


def judge(expected: Answers, got: Answers, meant: Sequence[Meant]) -> Verdict:
    """Hold answers against those of Triton."""
    table = Table(["call", *CLIENTS])
    wrong: list[str] = []
    seen: set[int] = set()
    same = named = 0
    for call, answers in expected.items():
        cells = dict.fromkeys(CLIENTS, "")
        for client, answer in answers.items():
            ours = got[call].get(client, {"failed": "not asked"})
            notes: set[int] = set()
            unexplained = []
            for where, theirs, own in differences(answer, ours):
                reasons = {place for place, one in enumerate(meant) if one.explains(call, where, own)}
                notes |= reasons
                if not reasons:
                    unexplained.append(f"{call}, {client}, {where}: Triton has {short(theirs)}, lamella {short(own)}")
            if unexplained:
                cells[client] = styled("differs", "bold red")
            elif notes:
                named += 1
                cells[client] = styled(
                    f"{status(ours)} ({', '.join(str(1 + place) for place in sorted(notes))})", "yellow"
                )
            else:
                same += 1
                cells[client] = styled(status(ours), "green")
            wrong += unexplained[:MOST]
            if len(unexplained) > MOST:
                wrong.append(f"{call}, {client}: and {len(unexplained) - MOST} more")
            seen |= notes
        table.add(call, *cells.values())
    wrong += [
        f"no longer differs, so meant.py should not say so: {one.reason}"
        for place, one in enumerate(meant)
        if place not in seen
    ]
    table.notes = [
        "The status of answers that agree with those of Triton. A number tells how they differ, as they are meant to:",
        *(f"{1 + place:2}  {one.reason}" for place, one in enumerate(meant)),
    ]
    return Verdict(table, same, named, wrong)


def status(answer: Any) -> str:
    """The status of an answer as HTTP has it."""
    failed = answer.get("error") if isinstance(answer, Mapping) else None
    return "200" if failed is None else CODES.get(failed, failed)


def short(value: Any) -> str:
    """A value in few words."""
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, help="of an environment with nvidia-pytriton and onnxruntime")
    parser.add_argument("--folder", type=Path, default=Path("runs/judge"), help="where results go (%(default)s)")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers end with it
    folder = given.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    repository = export(folder)
    python = given.python.absolute()  # a link to an interpreter is an environment of its own
    with (
        servers.triton(python, repository, folder, folder / "triton.log") as triton,
        servers.lamella(repository, folder / "lamella.log") as lamella,
    ):
        add_a_broken_model(repository)
        expected = ask(python, triton, folder / "triton.json")
        got = ask(python, lamella, folder / "lamella.json")
    verdict = judge(expected, got, MEANT)
    terminal = Terminal()
    terminal.print(verdict.table)
    terminal.print(
        f"\n{verdict.same} answers of lamella serve agree with those of Triton, {verdict.meant} differ as meant"
    )
    if verdict.wrong:
        terminal.print(styled(f"what else differs (all answers are in {given.folder}):", "bold red"))
        terminal.print("\n".join(f"  {line}" for line in verdict.wrong))
    return bool(verdict.wrong)


if __name__ == "__main__":
    sys.exit(main())
