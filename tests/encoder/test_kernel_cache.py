import errno
import fcntl
import os
from pathlib import Path

import pytest

from pipeline.encoder.kernel_cache import keep_kernels

PLACES = ["QUACK_CACHE_DIR", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"]
ENABLED = ["QUACK_CACHE_ENABLED", "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in PLACES + ENABLED})


def test_kernels_are_kept_in_a_folder_that_is_the_users_alone(tmp_path):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path)
    keep_kernels()
    for place, enabled in zip(PLACES, ENABLED, strict=True):
        folder = os.environ[place]
        assert folder.startswith(str(tmp_path))
        assert Path(folder).stat().st_mode & 0o077 == 0
        assert os.environ[enabled] == "1"


def test_a_folder_that_was_chosen_stays(tmp_path):
    os.environ.update(dict.fromkeys(PLACES, str(tmp_path / "chosen")))
    os.environ[ENABLED[0]] = "0"
    keep_kernels()
    assert [os.environ[place] for place in PLACES] == [str(tmp_path / "chosen")] * 2
    assert [os.environ[enabled] for enabled in ENABLED] == ["0", "1"]


def test_without_a_folder_none_are_kept_rather_than_where_others_can_write(tmp_path, caplog):
    (tmp_path / "file").touch()
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "file")
    keep_kernels()
    assert not any(place in os.environ for place in PLACES)
    assert [os.environ[enabled] for enabled in ENABLED] == ["0", "0"]
    assert "kernels_not_kept package=quack" in caplog.text


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, caplog):
    shared = tmp_path / "patchwire"
    shared.mkdir()
    shared.chmod(0o777)
    os.environ["XDG_CACHE_HOME"] = str(tmp_path)
    keep_kernels()
    assert [os.environ[enabled] for enabled in ENABLED] == ["0", "0"]
    assert "others can write there" in caplog.text


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_folder_without_locks_is_not_used(tmp_path, monkeypatch, code):
    def refuse(file, operation):
        raise OSError(code, os.strerror(code))

    os.environ["XDG_CACHE_HOME"] = str(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    keep_kernels()
    assert [os.environ[enabled] for enabled in ENABLED] == ["0", "0"]


def test_a_folder_that_cannot_be_written_to_is_not_used(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "read-only home")

    os.environ["XDG_CACHE_HOME"] = str(tmp_path)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    keep_kernels()
    assert [os.environ[enabled] for enabled in ENABLED] == ["0", "0"]


def test_a_relative_cache_home_counts_for_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    os.environ["XDG_CACHE_HOME"] = "caches"
    keep_kernels()
    assert all(os.environ[place].startswith(str(tmp_path / "home" / ".cache")) for place in PLACES)
