"""The command line: what it says, and its exit codes."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxformer import cli, machine
from jaxformer.commands import doctor
from jaxformer.train.checkpoint import SaveError
from jaxformer.train.loop import NotFiniteError


def run(*arguments):
    """The exit code."""
    with pytest.raises(SystemExit) as exit:
        cli.main(list(arguments))
    return exit.value.code


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_names_each_command(arguments, capsys):
    cli.main(arguments)
    out = capsys.readouterr().out
    assert out.startswith("usage: jaxformer COMMAND")
    for name in cli.COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_each_command_has_help(name, option, capsys):
    assert run(name, option) == 0
    assert f"usage: jaxformer {name}" in capsys.readouterr().out


def test_an_unknown_command_is_told_which_there_are(capsys):
    assert run("trian") == 2
    told = "expected one of train, evaluate, generate, chat, convert, verify, checkpoint, plan, doctor"
    assert capsys.readouterr().err == f"jaxformer: unknown command 'trian': {told}\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("steps is 0"), 1, "jaxformer: steps is 0\n"),
        (FileNotFoundError("no such file"), 1, "jaxformer: no such file\n"),
        (RuntimeError("in use"), 1, "jaxformer: in use\n"),
        (FloatingPointError("not finite"), 1, "jaxformer: not finite\n"),
        (SaveError("step 2 cannot be saved"), 1, "jaxformer: step 2 cannot be saved\n"),
        (NotFiniteError(3, "step 3"), 1, "jaxformer: step 3\n"),
        (KeyboardInterrupt(), 130, "jaxformer: interrupted\n"),
    ],
    ids=repr,
)
def test_what_a_user_can_put_right_is_said_without_a_traceback(error, code, said, monkeypatch, capsys):
    def fails(arguments):
        raise error

    monkeypatch.setattr(doctor, "main", fails)
    assert run("doctor") == code
    assert capsys.readouterr().err == said


QUICK = str(Path(__file__).parents[1] / "configs" / "quickstart.py")


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "/no/such", "--prompt", "a"],
        ["chat", "/no/such"],
        ["evaluate", "/no/such"],
        ["verify", "/no/such"],
        ["train", QUICK, "--replay", "1", "--folder", "/no/such"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_computes_keeps_compiled_programs_by_default(arguments, monkeypatch):
    """Said before anything is read."""
    asked = []
    monkeypatch.setattr(machine, "use_compilation_cache", lambda: asked.append(1))
    assert run(*arguments) == 1
    assert asked == [1]


@pytest.mark.parametrize("error", [TypeError("a bug"), jax.errors.JaxRuntimeError("out of memory")], ids=repr)
def test_a_fault_of_ours_keeps_its_traceback(error, monkeypatch):
    def fails(arguments):
        raise error

    monkeypatch.setattr(doctor, "main", fails)
    with pytest.raises(type(error)):
        cli.main(["doctor"])


def test_the_module_is_the_program_and_ends_quietly_when_its_reader_has_seen_enough():
    command = [sys.executable, "-W", "error", "-m", "jaxformer", "doctor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
