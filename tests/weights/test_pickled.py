"""PyTorch's files of tensors, read without PyTorch: no instruction of theirs is obeyed that could do anything."""

import importlib.util
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxformer.weights.pickled import open_pickled

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "benchmarks" / "fuzz.py")
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)
VALUES = np.arange(24, dtype=np.float32)


def archive(folder, program, storages=None):
    path = folder / "pytorch_model.bin"
    fuzz.write_archive(path, program, {"0": VALUES.tobytes()} if storages is None else storages)
    return path


def view(shape, strides, offset=0, kind="Float", key="0"):
    return fuzz.rebuilt(key, kind, VALUES.size, shape, strides, offset)


def test_views_of_one_storage_are_read(tmp_path):
    square = VALUES.reshape(4, 6)
    views = {
        "whole": view((4, 6), (6, 1)),
        "turned": view((6, 4), (1, 6)),
        "part": view((2, 3), (6, 2), offset=7),
        "repeated": view((3, 6), (0, 1), offset=6),
        "scalar": view((), (), offset=5),
        "empty": view((0, 7), (7, 1)),
    }
    found = open_pickled(archive(tmp_path, fuzz.dictionary(views)))
    expected = {
        "whole": square,
        "turned": square.T,
        "part": square[1:3, 1::2],
        "repeated": np.tile(square[1], (3, 1)),
        "scalar": np.float32(5),
        "empty": np.empty((0, 7), np.float32),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (np.shape(value), "float32")
        np.testing.assert_array_equal(found[name][...], value, err_msg=name)
    np.testing.assert_array_equal(found["turned"][1:3, ::2], square.T[1:3, ::2])


@pytest.mark.parametrize(("kind", "dtype"), [("BFloat16", "bfloat16"), ("Half", "float16"), ("Long", "int64")])
def test_storages_have_their_dtype(tmp_path, kind, dtype):
    found = open_pickled(archive(tmp_path, fuzz.dictionary({"a": view((3,), (1,), kind=kind)})))
    assert (found["a"].dtype, str(found["a"][:].dtype)) == (dtype, dtype)


@pytest.mark.parity
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_saves_is_read(tmp_path, protocol):
    torch = pytest.importorskip("torch")
    square = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": square,
        "turned": square.t(),
        "part": square[1:3, ::2],
        "parameter": torch.nn.Parameter(square[1]),
        "expanded": torch.ones(1, 3).expand(4, 3),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 5),
        **{str(dtype): torch.ones(2, 3, dtype=dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)},
        **{str(dtype): torch.ones(2, 3, dtype=dtype) for dtype in (torch.uint16, torch.int8, torch.bool)},
        "torch.float8_e4m3fn": torch.ones(3).to(torch.float8_e4m3fn),
    }
    torch.save(tensors, tmp_path / "x.bin", pickle_protocol=protocol)
    found = open_pickled(tmp_path / "x.bin")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert f"torch.{found[name].dtype}" == str(value.dtype)
        np.testing.assert_array_equal(found[name][...].astype(np.float64), value.detach().double().numpy())


@pytest.mark.parity
def test_a_state_dict_of_torch_is_read_and_its_older_format_is_not(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(module.state_dict(), tmp_path / "x.bin")
    found = open_pickled(tmp_path / "x.bin")
    assert {name: found[name].shape for name in found} == {
        name: tuple(value.shape) for name, value in module.state_dict().items()
    }
    torch.save(module.state_dict(), tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"x.bin: in the format of PyTorch before 1.6"):
        open_pickled(tmp_path / "x.bin")
    torch.save(module, tmp_path / "x.bin")
    with pytest.raises(ValueError, match=r"x.bin: its pickle names torch.nn.modules.container.Sequential"):
        open_pickled(tmp_path / "x.bin")


# What is refused.


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", [os.system, os.mkdir, exec, __import__, getattr], ids=lambda call: call.__name__)
def test_a_pickle_that_calls_is_refused_and_not_run(tmp_path, call, protocol):
    trap = tmp_path / "trap"
    line = {os.system: f"mkdir {trap}", os.mkdir: str(trap)}.get(call, f"import os; os.mkdir({str(trap)!r})")
    path = archive(tmp_path, pickle.dumps({"weight": Touch(call, line)}, protocol))
    named = f"{call.__module__}.{call.__name__}" if protocol else ""
    if call.__module__ == "builtins" and protocol < 3:
        named = f"__builtin__.{call.__name__}" if protocol else ""
    with pytest.raises(ValueError, match=rf"pytorch_model.bin: its pickle .*{named}.* refused"):
        open_pickled(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        (b"\x80\x02cposix\nsystem\nU\x02lsR.", "names posix.system"),
        (b"\x80\x02(iposix\nsystem\n.", "instruction INST posix system"),
        (b"\x80\x04X\x05\x00\x00\x00posixX\x06\x00\x00\x00system\x93.", "names posix.system"),
        (b"\x80\x02ccollections\nOrderedDict.__init__\n.", "names collections.OrderedDict.__init__"),
        (b"\x80\x02ctorch\nFloatStorage\n)\x81.", "instruction NEWOBJ"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02}b.", "takes more from its stack"),
        (b"\x80\x02ctorch\nFloatStorage\n}b.", "gives attributes to torch.FloatStorage"),
        (b"\x80\x02)(K\x01e.", "appends to a tuple"),
        (b"\x80\x02](K\x01K\x02u.", "sets items of a list"),
        (b"\x80\x02}(K\x01u.", "sets items of a dict"),
        (b"\x80\x02}()K\x02u.", "a dictionary with a tuple as a key"),
        (b"\x80\x02}(K\x01K\x02K\x01K\x02u.", "1 stands there twice"),
        (b"\x80\x02}K\x01R.", "calls a dict"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "OrderedDict of 1 arguments"),
        (b"\x80\x02K\x01R.", "takes more from its stack"),
        (b"\x80\x02.", "pickle is broken"),
        (b"\x80\x02q\x00.", "pickle is broken"),
        (b"\x80\x02h\x00.", "pickle is broken"),
        (b"\x80\x02t.", "pickle is broken"),
        (b"\x80\x02r\xff\xff\xff\xff.", "pickle is broken"),
        (b"\x80\x02}", "pickle|opcode"),
        (b"", "pickle|opcode"),
        (b"\xff\xfe", "opcode"),
        (b"\x80\x02].", "expected a dictionary of tensors by name, found a list"),
        (b"\x80\x02}K\x01K\x02s.", "expected a dictionary of tensors by name"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x02s.", "a: expected a tensor, found a int"),
        (b"\x80\x02}X\x01\x00\x00\x00a}s.", "a: expected a tensor, found a dict"),
        (b"\x80\x02}X\x01\x00\x00\x00actorch\nFloatStorage\ns.", "a: expected a tensor, found torch.FloatStorage"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_program_that_makes_no_tensors_is_refused(tmp_path, program, problem):
    with pytest.raises(ValueError, match=rf"pytorch_model.bin: .*({problem})"):
        open_pickled(archive(tmp_path, program))


def test_a_nest_too_deep_for_the_machine_is_refused(tmp_path):
    program = b"\x80\x02}(" + b")" + b"\x85" * 100_000 + b"K\x01u."
    with pytest.raises(ValueError, match="a dictionary with a tuple as a key"):
        open_pickled(archive(tmp_path, program))


@pytest.mark.parametrize(
    "tensor",
    [
        view((4, 7), (7, 1)),
        view((4, 6), (6, 1), offset=1),
        view((2,), (2**30,)),
        view((2,), (-1,), offset=3),
        view((-2,), (1,)),
        view((2, 2), (1,)),
        view((24,), (1,), kind="Double"),
        view((24,), (1,), key="1"),
        view((24,), (1,), key="../0"),
        view((24,), (1,), offset=-1),
    ],
    ids=range(10),
)
def test_a_tensor_that_leaves_its_storage_is_named(tmp_path, tensor):
    path = archive(tmp_path, fuzz.dictionary({"fine": view((4, 6), (6, 1)), "a.weight": tensor}))
    with pytest.raises(ValueError, match=r"pytorch_model.bin: a.weight( of shape|: a view|: its numbers)"):
        open_pickled(path)


def test_an_archive_that_is_no_file_of_tensors_is_named(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    program = fuzz.dictionary({"a": view((24,), (1,))})
    archive(tmp_path, program)
    whole = path.read_bytes()

    def refused(problem):
        with pytest.raises(ValueError, match=rf"pytorch_model.bin: .*{problem}"):
            open_pickled(path)

    path.write_bytes(b"weights")
    refused("not a zip file")
    path.write_bytes(whole[:-30])
    refused("not a whole file of torch.save")
    path.write_bytes(whole[30:])
    refused("not a whole file of torch.save")
    for names in (["a/b.txt"], ["data.pkl"], ["a/data.pkl", "b/data.pkl"]):
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, program)
        refused("no data.pkl in a folder is there")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", program)
    refused("a/data.pkl is compressed or encrypted")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", program)
        file.writestr("a/byteorder", "big")
    refused("byteorder b'big', expected 'little'")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", program)
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a/data.pkl", program)
    refused("an entry stands there twice")
