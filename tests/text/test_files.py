"""Small files, whole or not there."""

import pytest

from jaxformer.text.files import write_file


def test_a_file_is_never_seen_half_written(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_file(file, b"old")
    path = type(file)
    written = path.write_bytes

    def breaks(self, text, *args, **options):
        written(self, text[: len(text) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(path, "write_bytes", breaks)
    with pytest.raises(OSError, match="no space"):
        write_file(file, b"a new and longer text")
    assert file.read_text() == "old"
    monkeypatch.undo()
    write_file(file, b"new")
    assert file.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
