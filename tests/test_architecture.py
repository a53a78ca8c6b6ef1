"""The laws of the house, read from the syntax tree: who imports whom, what stands where, how long it is."""

import ast
import functools
import graphlib
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxformer"

# A room is a module or a package directly under jaxformer/; "" is jaxformer/__init__.py itself.
FLOORS = (
    {"parts", "codec", "names", "tree", "sandbox"},
    {"config"},
    {"families", "text", "nn"},
    {"opt_state", "scores", "flops", "distributed"},
    {"losses", "optimizer", "sharding", "lora", "quantize"},
    {"weights", "train", "generation"},
    {"objective"},
    {"source", "constrain", "stream_text", "conversation", "tasks", "align", "inspect"},
    {"pipelines", "experiment", "machine", "verify", "testing", "harness", "drawing"},
    {"starting", "humaneval"},
    {"feed", "stepping"},
    {"evaluating"},
    {"fitting"},
    {"replaying", "plan"},
    {"commands"},
    {"cli"},
    {"", "__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
USERS_OF_SOURCE = {"tasks", "align", "inspect"}  # the packages of its own floor

OPTIONAL = {
    *("torch", "transformers", "gguf", "pyarrow", "datasets", "IPython"),
    *("outlines_core", "llguidance", "lm_eval", "rouge_score", "sacrebleu"),
}
RESERVED = {"flax.linen": {"nn"}, "torch": {"verify"}, "transformers": {"verify"}}  # for these rooms alone
FRAMEWORKS = ("flax", "optax", "orbax")
BARRED = {
    **dict.fromkeys(("text", "families"), ("jax", "jaxlib", *FRAMEWORKS)),
    **dict.fromkeys(("parts", "config", "codec", "names", "tree"), FRAMEWORKS),
}
MESH_MAKERS = {"Mesh", "make_mesh", "create_device_mesh", "create_hybrid_device_mesh"}
FAMILIES = (
    r"albert|bart|bert|bloom|deberta|distilbert|electra|falcon|gemma\d?|gpt[-_]?(?:2|j|neox?)|llama|marian|mbart"
    r"|mistral|mixtral|mt5|olmo\d?|pegasus|phi\d?|qwen\d?|roberta|smollm\d?|t5|whisper"
)
# Parts of an identifier count (`load_gpt2`, `GPT2Config`); the RoPE scaling `llama3` is no family.
FILE_NAMES = {"sentence_bert_config.json"}  # another package's, whatever family is in its folder
FAMILY = re.compile(rf"(?<![^\W_])(?:{FAMILIES})(?![a-z0-9])", re.IGNORECASE)
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True)
class Module:
    """One source file. `name` is dotted below jaxformer: "text.pack", "text" for text/__init__.py."""

    name: str
    source: str
    is_package: bool = False

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @functools.cached_property
    def nodes(self) -> list[tuple[ast.AST, tuple[str, ...]]]:
        """Every node, with the names of the functions around it."""
        return list(walk(ast.parse(self.source), ()))

    def say(self, node: ast.AST, what: str) -> str:
        return f"{self.name or '__init__'}:{node.lineno}: {what}"


House = dict[str, Module]


def walk(node: ast.AST, around: tuple[str, ...]) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    yield node, around
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        around = (*around, getattr(node, "name", "lambda"))
    for child in ast.iter_child_nodes(node):
        yield from walk(child, around)


def house(folder: Path) -> House:
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = Module(name, path.read_text(), is_package)
    return found


def imports(module: Module) -> Iterator[tuple[str, ast.AST, tuple[str, ...]]]:
    """Full dotted names of what is imported; `from a import b` gives "a.b", a module or one of its names."""
    for node, around in module.nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node, around) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            here = ["jaxformer", *filter(None, module.name.split("."))]
            base = here[: len(here) - node.level + module.is_package] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            yield from ((f"{start}.{alias.name}", node, around) for alias in node.names)


def own_imports(modules: House, module: Module) -> Iterator[tuple[str, ast.AST, tuple[str, ...]]]:
    """As `imports`, those of our modules alone, each by its name in the house."""
    for dotted, node, around in imports(module):
        first, *parts = dotted.split(".")
        if first == "jaxformer":
            while parts and ".".join(parts) not in modules:
                parts.pop()
            yield ".".join(parts), node, around


def dotted_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def within(dotted: str, prefix: str) -> bool:
    return f"{dotted}.".startswith(f"{prefix}.")


def is_note(node: ast.AST) -> bool:
    """A docstring, also one that stands under a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def lines(node: ast.AST) -> int:
    """Lines of a definition without its docstrings."""
    notes = (part for part in ast.walk(node) if is_note(part))
    return node.end_lineno - node.lineno + 1 - sum(note.end_lineno - note.lineno + 1 for note in notes)


# The laws. Each takes the whole house and lists what breaks it.


def every_room_has_a_floor(modules: House) -> list[str]:
    return [
        f"{name}: place it on a floor in {Path(__file__).name}" for name, m in modules.items() if m.room not in FLOOR
    ]


def imports_go_down(modules: House) -> list[str]:
    def allowed(here: str, there: str) -> bool:
        below = FLOOR.get(there, 0) < FLOOR.get(here, 0)
        return here == there or below or (there == "source" and here in USERS_OF_SOURCE)

    return [
        module.say(node, f"imports {target or 'jaxformer'}, which is not below")
        for module in modules.values()
        for target, node, _ in own_imports(modules, module)
        if not allowed(module.room, target.partition(".")[0])
    ]


def imports_make_no_cycle(modules: House) -> list[str]:
    graph = {m.name: {t for t, _, _ in own_imports(modules, m) if t != m.name} for m in modules.values()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [f"a cycle: {' <- '.join(error.args[1])}"]
    return []


def imports_stand_at_the_top(modules: House) -> list[str]:
    """Exceptions: optional third parties, __getattr__ of an __init__, and one function of cli."""
    wrong = []
    for module in modules.values():
        hidden = [(name, node, around) for name, node, around in imports(module) if around]
        hidden += [
            (f"through {dotted_name(node.func)}()", node, around)
            for node, around in module.nodes
            if isinstance(node, ast.Call)
            and dotted_name(node.func).rpartition(".")[2] in {"import_module", "__import__"}
        ]
        hidden = [
            (name, node, around)
            for name, node, around in hidden
            if name.partition(".")[0] not in OPTIONAL and not (module.is_package and around == ("__getattr__",))
        ]
        if module.name == "cli" and len({around for _, _, around in hidden}) == 1:
            continue
        wrong += [module.say(node, f"imports {name} inside {'.'.join(around)}") for name, node, around in hidden]
    return wrong


def third_parties_stay_in_their_rooms(modules: House) -> list[str]:
    wrong = []
    for module in modules.values():
        names = [(name, node) for name, node, _ in imports(module)]
        names += [(dotted_name(node), node) for node, _ in module.nodes if isinstance(node, ast.Attribute)]
        for name, node in names:
            reserved = [p for p, rooms in RESERVED.items() if within(name, p) and module.room not in rooms]
            barred = [p for p in BARRED.get(module.room, ()) if within(name, p)]
            wrong += [module.say(node, f"{prefix} does not belong in {module.room}") for prefix in reserved + barred]
    return wrong


def the_reference_is_optional(modules: House) -> list[str]:
    return [
        module.say(node, f"imports {name} outside a function")
        for module in modules.values()
        for name, node, around in imports(module)
        if name.partition(".")[0] in OPTIONAL and not around
    ]


def only_sharding_makes_a_mesh(modules: House) -> list[str]:
    return [
        module.say(node, f"calls {dotted_name(node.func)}")
        for module in modules.values()
        if module.room != "sharding"
        for node, _ in module.nodes
        if isinstance(node, ast.Call)
        and dotted_name(node.func).rpartition(".")[2] in MESH_MAKERS
        and dotted_name(node.func) != "sharding.make_mesh"  # ours: jax has its own under another name
    ]


def no_family_is_named_outside_families(modules: House) -> list[str]:
    """But for what a third party calls its own: `normalizers.BertNormalizer`."""

    def strangers(module: Module) -> set[str]:
        nodes = [node for name, node, _ in imports(module) if not within(name, "jaxformer")]
        return {alias.asname or alias.name.partition(".")[0] for node in nodes for alias in node.names}

    def words(node: ast.AST) -> list[str]:
        fields = (getattr(node, key, None) for key in ("id", "attr", "arg", "name", "module", "value"))
        return [CAMEL.sub("_", word) for word in fields if isinstance(word, str)]

    wrong = []
    for module in modules.values():
        if module.room == "families":
            continue
        exempt = {id(node.value) for node, _ in module.nodes if is_note(node)}
        foreign = strangers(module)
        attributes = (node for node, _ in module.nodes if isinstance(node, ast.Attribute))
        exempt |= {id(node) for node in attributes if dotted_name(node).partition(".")[0] in foreign}
        wrong += [
            module.say(node, f"names a family: {word!r}")
            for node, _ in module.nodes
            if id(node) not in exempt and hasattr(node, "lineno")
            for word in words(node)
            if FAMILY.search(word) and word not in FILE_NAMES
        ]
    return wrong


def things_are_short(modules: House) -> list[str]:
    wrong = []
    for module in modules.values():
        if (length := module.source.count("\n")) >= 400:
            wrong.append(f"{module.name}: {length} lines; a file stays under 400")
        for node, _ in module.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (length := lines(node)) >= 60:
                wrong.append(module.say(node, f"{node.name} has {length} lines; a function stays under 60"))
            if isinstance(node, ast.ClassDef) and node.name == "Block" and (length := lines(node)) >= 40:
                wrong.append(module.say(node, f"Block has {length} lines; it stays under 40"))
    return wrong


def no_room_bears_a_public_name(rooms: set[str], public: set[str]) -> list[str]:
    return sorted(rooms & public)


LAWS: list[Callable[[House], list[str]]] = [
    every_room_has_a_floor,
    imports_go_down,
    imports_make_no_cycle,
    imports_stand_at_the_top,
    third_parties_stay_in_their_rooms,
    the_reference_is_optional,
    only_sharding_makes_a_mesh,
    no_family_is_named_outside_families,
    things_are_short,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_house_keeps(law):
    assert law(house(PACKAGE)) == []


def test_no_room_bears_the_name_of_something_public():
    rooms = {module.room for module in house(PACKAGE).values()}
    assert no_room_bears_a_public_name(rooms, set(importlib.import_module("jaxformer").__all__)) == []
    assert no_room_bears_a_public_name({"text", "generate"}, {"generate", "fit"}) == ["generate"]


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import jaxformer.text.pack", {"jax", "flax", "orbax"}),
        (
            "import sys; from jaxformer.cli import main; sys.argv = ['jaxformer', '--help']; main()",
            {"flax", "orbax"},
        ),
    ],
    ids=["text", "help"],
)
def test_a_light_start_loads_nothing_heavy(program, unwanted):
    report = "import atexit, sys; atexit.register(lambda: print('loaded', *sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{report}; {program}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not unwanted & set(done.stdout.splitlines()[-1].split())


# Each law must be able to fail: on each of these houses (sources by module name) it does.
BAD = [
    (every_room_has_a_floor, {"attic": ""}),
    (every_room_has_a_floor, {"attic.box": ""}),
    (imports_go_down, {"losses": "import jaxformer.train.step", "train.step": ""}),
    (imports_go_down, {"losses": "from jaxformer.train import step", "train.step": ""}),
    (imports_go_down, {"train.step": "from ..generation import decode", "generation.decode": ""}),
    (imports_go_down, {"nn.norm": "from ..text.pack import pack", "text.pack": ""}),
    (imports_go_down, {"losses": "from jaxformer import optimizer", "optimizer": ""}),
    (imports_go_down, {"losses": "from jaxformer import fit", "": ""}),
    (imports_go_down, {"constrain": "import jaxformer.source", "source": ""}),
    (imports_go_down, {"experiment": "import jaxformer.fitting", "fitting": ""}),
    (imports_go_down, {"source": "def f():\n    import jaxformer.experiment", "experiment": ""}),
    (imports_make_no_cycle, {"nn.a": "from jaxformer.nn.b import f", "nn.b": "from .a import g"}),
    (imports_make_no_cycle, {"nn": "from jaxformer.nn.a import f", "nn.a": "from jaxformer.nn import g"}),
    (imports_stand_at_the_top, {"nn.a": "def f():\n    import numpy"}),
    (imports_stand_at_the_top, {"nn.a": "f = lambda: __import__('numpy')"}),
    (imports_stand_at_the_top, {"nn.a": "def __getattr__(name):\n    from jaxformer.nn import b"}),
    (imports_stand_at_the_top, {"tasks.a": "def f():\n    importlib.import_module('jaxformer.cli')"}),
    (imports_stand_at_the_top, {"cli": "def f():\n    import ast\ndef g():\n    import re"}),
    (third_parties_stay_in_their_rooms, {"losses": "import flax.linen as nn"}),
    (third_parties_stay_in_their_rooms, {"losses": "from flax import linen"}),
    (third_parties_stay_in_their_rooms, {"losses": "import flax\nflax.linen.Dense(3)"}),
    (third_parties_stay_in_their_rooms, {"text.pack": "import jax.numpy as jnp"}),
    (third_parties_stay_in_their_rooms, {"families.gpt2": "from jax import numpy"}),
    (third_parties_stay_in_their_rooms, {"config": "import flax"}),
    (third_parties_stay_in_their_rooms, {"weights.hub": "def f():\n    import torch"}),
    (third_parties_stay_in_their_rooms, {"machine": "from transformers import AutoModel"}),
    (the_reference_is_optional, {"verify": "import torch"}),
    (only_sharding_makes_a_mesh, {"train.step": "mesh = jax.sharding.Mesh(devices, ('data',))"}),
    (only_sharding_makes_a_mesh, {"experiment": "mesh = jax.make_mesh((8,), ('data',))"}),
    (no_family_is_named_outside_families, {"weights.convert": "if config.model_type == 'llama': pass"}),
    (no_family_is_named_outside_families, {"losses": "def gpt2_loss(): pass"}),
    (no_family_is_named_outside_families, {"nn.model": "class LlamaModel: pass"}),
    (no_family_is_named_outside_families, {"nn.model": "GPT2Config = 3"}),
    (no_family_is_named_outside_families, {"source": "from jaxformer.families import t5"}),
    (no_family_is_named_outside_families, {"source": "name = f'{size}-gpt-2'"}),
    (no_family_is_named_outside_families, {"source": "import jaxformer\njaxformer.families.bart.config"}),
    (things_are_short, {"losses": "x = 1\n" * 400}),
    (things_are_short, {"losses": "def f():\n" + "    x = 1\n" * 59}),
    (things_are_short, {"nn.block": "class Block:\n" + "    x = 1\n" * 39}),
]
GOOD = [
    {"cli": "def run():\n    import jaxformer.experiment", "experiment": "", "": "import jaxformer.cli"},
    {"tasks.answer": "from ..source import load", "source": "from jaxformer.text import pack", "text": ""},
    {"text": "from jaxformer.text import pack", "text.pack": "import numpy"},
    {"verify": "def compare():\n    import torch"},
    {"nn.block": "import flax.linen\nclass Block:\n    '''One\n\n\nblock.'''\n" + "    x = 1\n" * 38},
    {"fitting": "from jaxformer import sharding\nmesh = sharding.make_mesh(8)", "sharding": ""},
    {"sharding": "from jax.sharding import Mesh\nmesh = Mesh(devices, axes)"},
    {"train.step": "from jax.sharding import Mesh\ndef f(mesh: Mesh): return isinstance(mesh, Mesh)"},
    {"nn.positions": "SCALING = {'llama3': 1}  # as in llama\ndef f():\n    '''As GPT-2 does.'''"},
    {"text.words": "from tokenizers import normalizers\nnormalizers.BertNormalizer()", "text": ""},
    {"losses": "bartender = alberta = robertas = opt_state = 1"},
    {"losses": "def f():\n    '''A\n\n\nsum.'''\n" + "    x = 1\n" * 58},
]


def small_house(sources: dict[str, str]) -> House:
    packages = {name.rpartition(".")[0] for name in sources if "." in name} | {""}
    return {name: Module(name, source, name in packages) for name, source in sources.items()}


@pytest.mark.parametrize(("law", "sources"), BAD, ids=lambda part: getattr(part, "__name__", ""))
def test_each_law_catches_a_breach(law, sources):
    assert law(small_house(sources)) != []


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("sources", GOOD, ids=lambda sources: next(iter(sources)))
def test_no_law_forbids_what_is_right(law, sources):
    assert law(small_house(sources)) == []
