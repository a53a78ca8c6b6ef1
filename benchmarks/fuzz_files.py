"""What benchmarks/fuzz.py damages beside checkpoints: configs, tokenizers, experiments, adapters, data, templates."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet

import jaxformer
from jaxformer import source
from jaxformer.config import Sentences
from jaxformer.evaluating import recorded
from jaxformer.experiment import Experiment
from jaxformer.families import family, gpt2
from jaxformer.lora import LoraConfig
from jaxformer.lora import init as init_adapter
from jaxformer.tasks import Classify
from jaxformer.testing import SENTENCES, tiny_models, tiny_tokenizer
from jaxformer.text import chat, prepare
from jaxformer.text.corpus import DataConfig, open_documents
from jaxformer.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from jaxformer.weights import sentence_transformers

Load = Callable[[Path], object]
EMPTY = "the data holds no text: every document is empty, or bad"
TEXT = "def f(x):\n    return x  # Äpfel <s> 日本"
MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Well"}]
TEMPLATE = """\
{%- set ns = namespace(count=0) %}{{ bos_token }}
{%- for message in messages if message['content'] is string %}
    {%- set ns.count = ns.count + 1 %}
    {{- '<|' + message.role + '|>\\n' ~ message['content'] | trim | upper ~ loop.index * 2 }}
    {%- if loop.last %}{{ {'n': ns.count, 'all': messages[1:] | map(attribute='role') | list} | tojson }}{% endif %}
{%- endfor %}
{%- macro say(x, width=4) %}{{ '%s' | format(x) | replace('l', 'L') | indent(width) }}{% endmacro %}
{{- say(messages | length) }}{% if add_generation_prompt %}{{ 'go'.join(['a', 'b']) * 3 }}{% endif %}
"""
ROWS = [{"text": f"{i} {line}", "label": str(i), "n": i} for i, line in enumerate(SENTENCES * 4)]


def read_tokenizer(folder: Path, description: dict | None = None) -> None:
    tokenizer = load_tokenizer(folder, description)
    ids = tokenizer.encode(TEXT)
    tokenizer.decode(tokenizer.template(ids, ids)[0])
    tokenizer.fingerprint()
    if tokenizer.chat_template is not None:
        try:
            chat.prompt(tokenizer, MESSAGES)
        except ValueError as error:
            if not str(error).startswith("chat template"):  # a template is a text that has left its file
                raise


def read_model(folder: Path) -> None:
    jaxformer.from_pretrained(folder)
    read_tokenizer(folder)


def read_data(folder: Path, columns: Sequence[str] = ()) -> None:
    try:
        for document in open_documents(DataConfig((str(folder),), held_out=0), columns):
            assert document.digest
    except ValueError as error:
        if str(error) != EMPTY:  # which is said of all files together
            raise


def read_rows(folder: Path) -> None:
    read_data(folder)
    read_data(folder, ("text", "label"))


def read_store(folder: Path) -> None:
    store = prepare.Store.open(folder)
    for i in range(len(store)):
        store[i]


def read_template(folder: Path) -> None:
    try:
        chat.render((folder / "chat_template.jinja").read_text(), MESSAGES, True, bos_token="<s>")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def write_models(root: Path) -> dict[str, Load]:
    sizes = {"vocab_size": 300, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    config = gpt2.config({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"} | sizes)
    model = jaxformer.Model(config)
    params = jaxformer.init(model, jax.random.key(0))
    trained = chat.taught(train_tokenizer(TokenizerConfig("byte_bpe", 300), SENTENCES), TEMPLATE)
    jaxformer.save_pretrained(root / "model", model, params, trained)
    sentence_transformers.write(root / "model", Sentences("mean", normalize=True, length=12), 8)
    jaxformer.save_adapter(
        root / "adapter", model, init_adapter(LoraConfig(rank=2), params, jax.random.key(1)), base="elsewhere"
    )
    return {"model": read_model, "adapter": lambda folder: source.load_adapter(folder, model, params)}


def write_tokenizers(root: Path) -> dict[str, Load]:
    loads: dict[str, Load] = {}
    for kind, name in (("byte_bpe", "gpt2"), ("wordpiece", "bert"), ("sentencepiece", "t5")):
        folder, description = root / kind, family(name).TOKENIZER
        train_tokenizer(TokenizerConfig(kind, 300), SENTENCES).save(folder)
        told = json.loads((folder / "tokenizer.json").read_text())
        if kind == "byte_bpe":
            merges = told["model"]["merges"]
            (folder / "vocab.json").write_text(json.dumps(told["model"]["vocab"] | {"<|endoftext|>": 300}))
            (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in merges))
        elif kind == "wordpiece":
            (folder / "vocab.txt").write_text(
                "\n".join(sorted(told["model"]["vocab"], key=told["model"]["vocab"].get))
            )
        else:
            (folder / "tokenizer.model").rename(folder / "spiece.model")
        (folder / "tokenizer.json").unlink()
        loads[kind] = lambda folder, description=description: read_tokenizer(folder, description)
    tiny_tokenizer().save(root / "tokenizer")
    return loads | {"tokenizer": read_tokenizer}


def write_data(root: Path) -> dict[str, Load]:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    table = pyarrow.Table.from_pylist(ROWS)
    files = {
        "rows.jsonl": lines,
        "rows.jsonl.gz": gzip.compress(lines),
        "rows.csv": b"text,label\n" + b"".join(f'"{r["text"]}",{r["label"]}\n'.encode() for r in ROWS),
        "rows.tsv": b"text\tlabel\n" + b"".join(f"{r['text'].strip()[:9]}\t{r['label']}\n".encode() for r in ROWS),
        "text.txt": "\n".join(SENTENCES).encode(),
        "text.txt.gz": gzip.compress("\n".join(SENTENCES).encode()),
        "code.py": b"# -*- coding: latin-1 -*-\nx = 1\n",
        "tokens.bin": np.arange(50, dtype="<u2").tobytes(),
    }
    for name in (*files, "rows.parquet", "tokens.npy", "saved"):
        (root / name).mkdir(parents=True)
    for name, data in files.items():
        (root / name / name).write_bytes(data)
    pyarrow.parquet.write_table(table, root / "rows.parquet" / "rows.parquet", row_group_size=5)
    np.save(root / "tokens.npy" / "tokens.npy", np.arange(50, dtype=np.int32))
    with (
        pyarrow.OSFile(str(root / "saved" / "data.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as s,
    ):
        s.write_table(table, max_chunksize=5)
    (root / "saved" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    rows = {name: read_rows for name in files if name.startswith("rows")}
    return dict.fromkeys((*files, "tokens.npy"), read_data) | rows | {"rows.parquet": read_rows, "saved": read_rows}


def write_others(root: Path) -> dict[str, Load]:
    for name in ("experiment", "template"):
        (root / name).mkdir()
    told = Experiment(
        "fuzz", 3, tiny_models()["rotary"], adapter=LoraConfig(), task=Classify(labels=("a", "b"))
    ).identity()
    (root / "experiment" / "experiment.json").write_text(json.dumps({"version": 1, "experiment": told}))
    (root / "template" / "chat_template.jinja").write_text(TEMPLATE)
    examples = lambda document: [{"tokens": np.frombuffer(document.text.encode(), np.uint8)}]
    documents = open_documents(list(SENTENCES))
    prepare.prepare(documents, examples, {"tokens": 256}, "fuzz", root / "stores")
    (stored,) = (root / "stores").iterdir()
    stored.rename(root / "store")
    return {"experiment": recorded, "template": read_template, "store": read_store}


def write_all(root: Path) -> dict[str, Load]:
    """What reads each of the folders that it writes under `root`, by the folder's name."""
    root.mkdir(parents=True, exist_ok=True)
    return write_models(root) | write_tokenizers(root) | write_data(root) | write_others(root)
