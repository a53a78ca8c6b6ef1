"""`jaxformer COMMAND ...`: finds the command; what a command needs is loaded with it alone."""

import importlib
import os
import sys

COMMANDS = {
    "train": "run an experiment, or go on with it: jaxformer train configs/quickstart.py [--OPTION VALUE ...]",
    "evaluate": "say how good a model is: jaxformer evaluate FOLDER [--data.files FILES --task NAME]",
    "generate": "continue a prompt: jaxformer generate FOLDER --prompt TEXT",
    "chat": "talk with a model that was trained on conversations: jaxformer chat FOLDER",
    "convert": "write any checkpoint in the published layout: jaxformer convert SOURCE FOLDER",
    "verify": "look a published model over, layer by layer: jaxformer verify FOLDER",
    "checkpoint": "look after what a run has saved: jaxformer checkpoint list | verify | prune FOLDER",
    "plan": "say what a run needs on devices that need not be here: jaxformer plan CONFIG --topology v5e:4x4",
    "doctor": "say what is installed, which devices are used, and what is wrong",
}
LIBRARIES = ("jax", "jaxlib", "flax", "orbax")
"""Whose errors are no message to a user."""


def main(arguments: list[str] | None = None) -> None:
    """The console script. Exits with 2 for a command it doesn't know, 1 for input that cannot be used."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        lines = "\n".join(f"  {command:11}{summary}" for command, summary in COMMANDS.items())
        print(f"usage: jaxformer COMMAND ...\n\n{lines}\n\njaxformer COMMAND --help tells its options.")
    elif name not in COMMANDS:
        sys.exit(_complain(f"unknown command {name!r}: expected one of {', '.join(COMMANDS)}", 2))
    else:
        sys.exit(_dispatch(name, rest))


def _dispatch(name: str, arguments: list[str]) -> int:
    """Run a command; what a user can put right is told in its own words, without a traceback."""
    command = importlib.import_module(f"jaxformer.commands.{name}")
    try:
        return command.main(arguments)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has seen enough; what is left of it must not fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
        is_found_missing = isinstance(error, ImportError) and error.name is not None  # by Python, not by us
        if is_found_missing or type(error).__module__.partition(".")[0] in LIBRARIES:
            raise  # a fault of ours, or of the machine: the traceback is the message
        return _complain(str(error), 1)


def _complain(text: str, code: int) -> int:
    print(f"jaxformer: {text}", file=sys.stderr)
    return code
