"""Files of others are data: nothing that is loaded is run, names nothing outside of its folder, or is without end."""

import ast
import gzip
import json
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxformer
from jaxformer import codec
from jaxformer.evaluating import recorded
from jaxformer.experiment import Experiment
from jaxformer.families import gpt2
from jaxformer.testing import SENTENCES, tiny_models
from jaxformer.text.corpus import DataConfig, open_documents
from jaxformer.text.prepare import Store, prepare
from jaxformer.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from jaxformer.weights import adapters, hub, sentence_transformers

PACKAGE = Path(jaxformer.__file__).parent
SIZES = {"vocab_size": 300, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
CONFIG = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"} | SIZES


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return Path.mkdir, (Path(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """What each trap would make; it must not be there in the end."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    made = jaxformer.Model(gpt2.config(CONFIG))
    tokenizer = train_tokenizer(TokenizerConfig("byte_bpe", 300), SENTENCES)
    jaxformer.save_pretrained(folder, made, jaxformer.init(made, jax.random.key(0)), tokenizer)
    return folder


def change(path: Path, **entries) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def documents(path: Path):
    return list(open_documents(DataConfig((str(path),), held_out=0)))


# Nothing is run.


def test_the_trap_works(marker):
    pickle.loads(pickle.dumps(Trap(marker)))
    marker.rmdir()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_of_weights_is_not_run(protocol, model, marker):
    (model / hub.WEIGHTS).unlink()
    with zipfile.ZipFile(model / hub.PICKLED, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"wte.weight": Trap(marker)}, protocol))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: its pickle .* refused"):
        jaxformer.from_pretrained(model)
    (model / hub.PICKLED).write_bytes(pickle.dumps({"wte.weight": Trap(marker)}, protocol))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: not a whole file"):
        jaxformer.from_pretrained(model)


@pytest.mark.parametrize("suffix", [".npy", ".bin", ".jsonl", ".txt", ".csv", ".parquet", ".jsonl.gz"])
def test_a_pickle_among_data_is_not_run(suffix, tmp_path, marker):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path, data = tmp_path / f"data{suffix}", pickle.dumps(Trap(marker))
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data + b"\0" * (len(data) % 2))
    if suffix == ".bin":  # numbers are numbers
        assert documents(path)
    else:
        with pytest.raises(ValueError, match=rf"data{suffix}"):
            documents(path)


def test_arrays_of_objects_are_not_unpickled(tmp_path, marker):
    array = np.array([Trap(marker)] * 3, object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "b.npz", text=array)
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    for name in ("a.npy", "b.npy"):
        with pytest.raises(ValueError, match=rf"{name}: expected"):
            documents(tmp_path / name)
    store = stored(tmp_path)
    np.save(store / "shard-00000" / "bytes.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=r"bytes\.npy: damaged"):
        Store.open(store)


def test_a_type_of_arrow_that_unpickles_is_not_asked(tmp_path, marker):
    pyarrow = pytest.importorskip("pyarrow")
    told = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Trap(marker))}
    field = pyarrow.field("text", pyarrow.string(), metadata=told)
    table = pyarrow.table({"text": ["a"]}, schema=pyarrow.schema([field]))
    with (
        pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    assert [document.text for document in documents(tmp_path / "a.arrow")] == ["a"]
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    assert [document.text for document in documents(tmp_path / "a.parquet")] == ["a"]


def test_code_that_lies_beside_a_model_is_not_imported(model, marker, monkeypatch):
    code = f"import pathlib; pathlib.Path({str(marker)!r}).mkdir()\nclass Model: pass\nTransformer = Pooling = Model"
    for name in ("evil.py", "modeling_gpt2.py", "tokenization_gpt2.py", "setup.py", "config.py", "__init__.py"):
        (model / name).write_text(code)
    monkeypatch.syspath_prepend(str(model))
    places = {"AutoConfig": "evil.Model", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Model", None]}
    for name in ("config.json", "tokenizer_config.json"):
        change(model / name, auto_map=places)
    sentence_transformers.write(model, jaxformer.config.Sentences("mean"), 8)
    listed = json.loads((model / sentence_transformers.MODULES).read_text())
    for entry in listed:
        entry["type"] = "evil." + entry["type"].rpartition(".")[2]
    (model / sentence_transformers.MODULES).write_text(json.dumps(listed))
    hub.write_json(model / "generation_config.json", {"custom_generate": "evil", "trust_remote_code": True})
    before = set(sys.modules)
    load_tokenizer(model)
    with pytest.raises(ValueError, match=r"config\.json: gpt2: auto_map=.* is not supported"):  # another architecture
        jaxformer.from_pretrained(model)
    told = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({name: value for name, value in told.items() if name != "auto_map"})
    )
    jaxformer.from_pretrained(model)
    assert not {name for name in set(sys.modules) - before if name.startswith(("evil", "modeling", "tokenization_"))}


def test_an_experiment_is_made_of_its_own_types_alone(tmp_path, marker):
    good = Experiment("x", 3, tiny_models()["rotary"]).identity()
    names = ("os.system", "posix.system", "subprocess.Popen", "builtins.eval", "Path", "__reduce__", ["a"], {})
    for name in names:
        call = {"type": name, "args": [f"mkdir {marker}"], "command": f"mkdir {marker}"}
        for place in ("task", "model", "data", "optimizer", "steps"):
            (tmp_path / "experiment.json").write_text(json.dumps({"version": 1, "experiment": good | {place: call}}))
            with pytest.raises(ValueError, match=rf"experiment\.json: cannot read this as Experiment:\n.*{place}"):
                recorded(tmp_path)
    with pytest.raises(ValueError, match="Experiment"):
        codec.from_json({"type": "Experiment", "__class__": "os.system"}, Experiment)


# Nothing outside of its folder is read.

ESCAPES = ["../secret", "/etc/hostname", "a/../../secret", "..", ".", "", "a\\b", "a\0b", "x" * 5000, "folder/inner"]


@pytest.mark.parametrize("place", ESCAPES, ids=lambda place: repr(place)[:20])
@pytest.mark.parametrize("index", [names[1] for names in hub.TENSORS])
def test_an_index_names_files_of_its_folder(index, place, tmp_path):
    hub.write_json(tmp_path / index, {"weight_map": {"wte.weight": place}})
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{index}: these (are not names of files|files are)"):
        hub.open_tensors(tmp_path)


@pytest.mark.parametrize("place", ESCAPES[:5] + ESCAPES[6:], ids=lambda place: repr(place)[:20])
def test_modules_of_sentences_are_folders_of_its_folder(place, tmp_path):
    sentence_transformers.write(tmp_path, jaxformer.config.Sentences("mean"), 8)
    listed = json.loads((tmp_path / "modules.json").read_text())
    listed[1]["path"] = place
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises((ValueError, OSError), match=str(tmp_path)):
        sentence_transformers.read(tmp_path)


@pytest.mark.parametrize("place", ESCAPES, ids=lambda place: repr(place)[:20])
def test_a_saved_data_set_lists_files_of_its_folder(place, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "state.json").write_text(json.dumps({"_data_files": [{"filename": place}]}))
    with pytest.raises((ValueError, OSError), match="set"):
        open_documents(DataConfig((str(tmp_path / "set"),)))


def stored(tmp_path: Path) -> Path:
    examples = lambda document: [{"tokens": np.frombuffer(document.text.encode(), np.uint8)}]
    prepare(open_documents(list(SENTENCES)), examples, {"tokens": 256}, "x", tmp_path / "stores")
    (store,) = (tmp_path / "stores").iterdir()
    return store


@pytest.mark.parametrize("place", ESCAPES, ids=lambda place: repr(place)[:20])
def test_a_store_names_shards_and_fields_of_its_folder(place, tmp_path):
    store = stored(tmp_path)
    told = (store / "meta.json").read_text()
    for entries in ({"shards": [place]}, {"fields": {place: "<u2"}}, {"fields": {"tokens": "O"}}):
        (store / "meta.json").write_text(told)
        change(store / "meta.json", **entries)
        with pytest.raises((ValueError, OSError), match=r"meta\.json: damaged|File name too long"):
            Store.open(store)


def test_an_adapter_of_an_adapter_is_refused(tmp_path):
    for base in (str(tmp_path), 7, ["a"], {"a": 1}):
        hub.write_json(tmp_path / adapters.CONFIG, {"peft_type": "LORA", "base_model_name_or_path": base})
        with pytest.raises(ValueError, match=r"adapter_config\.json: base_model_name_or_path"):
            jaxformer.from_pretrained(tmp_path)


# Nothing is without bounds.

MEMORY = 1 << 30
BOUNDED = """
import resource, sys
from pathlib import Path
from jaxformer.text.corpus import DataConfig, open_documents
from jaxformer.text.special import read_published
from jaxformer.weights import gguf, hub
resource.setrlimit(resource.RLIMIT_DATA, ({memory}, {memory}))
for path in map(Path, sys.argv[1:]):
    try:
        if path.suffix == ".gguf":
            gguf.read_file(path)
        elif path.is_dir():
            {{n: t.shape for n, t in hub.open_tensors(path).items()}}
        else:
            print(path.name, sum(d.size > 0 for d in open_documents(DataConfig((str(path),), held_out=0))))
    except (ValueError, OSError) as error:
        print(path.name, type(error).__name__, str(error).replace(chr(10), " ")[:300])
    except BaseException as error:
        print(path.name, "escaped", repr(error))
"""


def bombs(folder: Path) -> dict[str, str]:
    """Small files that would be gigabytes, and what each must come to."""
    size = 3 * MEMORY
    packed = gzip.compress(b"a" * (1 << 26)) * (size >> 26)
    for name in ("text.txt.gz", "line.jsonl.gz"):
        (folder / name).write_bytes(packed)
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (%d,)}" % (1 << 61)
    for name, told in (("shape.npy", header), ("deep.npy", b"-" * 60000 + b"1")):
        (folder / name).write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(told)) + told + b"\0" * 64)
    (folder / "deep.jsonl").write_bytes(b'{"text": ' + b"[" * 200_000 + b"\n")
    text = lambda value: struct.pack("<Q", len(value)) + value
    for name, count in (("counts.gguf", 1 << 60), ("array.gguf", 1)):
        field = text(b"a") + struct.pack("<IIQ", 9, 8, 1 << 60)
        (folder / name).write_bytes(b"GGUF" + struct.pack("<IQQ", 3, count, count) + field)
    for name, file, data in (
        ("header", hub.WEIGHTS, struct.pack("<Q", 1 << 62) + b"{}"),
        ("nested", hub.WEIGHTS, struct.pack("<Q", 10**6) + b'{"a":' * 200_000),
        ("map", hub.FLAX, b"\xdf\xff\xff\xff\xff\xa1a"),
        ("levels", hub.FLAX, b"\x81\xa1a" * 100_000),
        ("array", hub.FLAX, b"\x81\xa1a\xc9\xff\xff\xff\xff\x01"),
    ):
        (folder / name).mkdir()
        (folder / name / file).write_bytes(data)
    program = pickle.dumps({"a": 1}, 2)
    for name, method in (("packed", zipfile.ZIP_DEFLATED), ("plain", zipfile.ZIP_STORED)):
        (folder / name).mkdir()
        with zipfile.ZipFile(folder / name / hub.PICKLED, "w", method) as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/data/0", b"\0" * (1 << 26 if name == "packed" else 64))
    declared = folder / "plain" / hub.PICKLED  # of the entry's size, in both of its places
    declared.write_bytes(
        declared.read_bytes().replace(struct.pack("<II", 64, 64), struct.pack("<II", *[1 << 31] * 2))
    )
    return {
        "text.txt.gz": "ValueError .*text.txt.gz: it unpacks to more than",
        "line.jsonl.gz": "ValueError .*it unpacks to more than",
        **dict.fromkeys(("shape.npy", "deep.npy"), "ValueError .*npy: expected"),
        "deep.jsonl": "ValueError .*expected a JSON object",
        **dict.fromkeys(("counts.gguf", "array.gguf"), "ValueError .*not a whole GGUF file"),
        **dict.fromkeys(("header", "nested"), "ValueError .*not a whole safetensors file"),
        **dict.fromkeys(("map", "levels", "array"), "ValueError .*not a whole file of Flax"),
        **dict.fromkeys(("packed", "plain"), "ValueError .*not a whole file of torch.save"),
    }


def test_small_files_of_gigabytes_are_refused_in_little_memory(tmp_path):
    pytest.importorskip("gguf")
    expected = bombs(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < MEMORY / 50
    code = BOUNDED.format(memory=MEMORY)
    run = subprocess.run([sys.executable, "-c", code, *map(str, sorted(tmp_path.iterdir()))], capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    found = dict(line.split(" ", 1) for line in run.stdout.decode().splitlines())
    assert found.keys() == expected.keys()
    for name, error in expected.items():
        assert re.match(error, found[name]), f"{name}: {found[name]}"


def test_a_long_string_that_a_table_repeats_is_held_a_few_times(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    long = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 50, pyarrow.int32()), pyarrow.array(["a" * (20 << 20)])
    )
    parquet = pytest.importorskip("pyarrow.parquet")
    options = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 30, "store_schema": False}
    parquet.write_table(pyarrow.table({"text": long}), tmp_path / "a.parquet", **options)
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    code = BOUNDED.format(memory=MEMORY)
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.parquet"], capture_output=True, text=True)
    assert run.stdout == "a.parquet 50\n", run.stderr


# The house: what could run a file's code is not there, but where a reason is given.

RUNS = {
    "sandbox": "runs programs that a model wrote, in a process of its own: that is what it is for",
    "commands.train": "runs the user's own configuration, which is a program",
    "cli": "imports commands by their names, which are in the source",
    "__init__": "imports what the package offers, by names in the source",
    "text.corpus": "pickles what an iterator in memory gives into a file of its own, which nobody else may write",
}
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "runpy",
    "subprocess",
    "yaml",
}
SAFE = {"allow_pickle": "False", "trust_remote_code": "False", "weights_only": "True"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "importlib.import_module",
    "os.system",
    "os.popen",
    "torch.load",
    "np.load",
    "numpy.load",
}


def runners(source: str) -> list[str]:
    """What in a program could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            found.append(str(node.module))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            found.append(ast.unparse(node.func))
        if isinstance(node, ast.keyword) and node.arg in SAFE and ast.unparse(node.value) != SAFE[node.arg]:
            found.append(f"{node.arg}={ast.unparse(node.value)}")
    return found


def test_nothing_in_the_house_could_run_what_a_file_says():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if (there := runners(path.read_text())) and name not in RUNS:
            found[name] = there
    assert found == {}
    assert all(runners((PACKAGE / f"{name.replace('.', '/')}.py").read_text()) for name in RUNS)


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import load", "eval(x)", "os.system(x)", "np.load(p)", "f(allow_pickle=True)"],
)
def test_the_law_sees_what_runs(source):
    assert runners(source)
