from pathlib import Path

import pytest

from serve.model_config import All, Latest, ModelConfig, Specific
from serve.version_folders import find_versions, what_is_amiss


def test_find_versions(tmp_path: Path):
    ignored = ("next", "-3", "+4", " 5", "1.5", "²", "1_000", "", "5\n", str(2**63), "9" * 255)
    for name in ("00000123", "7", str(2**63 - 1), *ignored):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "9").write_text("a file")
    assert find_versions(tmp_path) == {
        7: tmp_path / "7",
        123: tmp_path / "00000123",
        2**63 - 1: tmp_path / str(2**63 - 1),
    }


def test_links_to_folders_are_versions(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "2").symlink_to(tmp_path / "nowhere")
    (tmp_path / "3").symlink_to(tmp_path / "3")
    assert find_versions(tmp_path) == {1: tmp_path / "1"}


def test_a_number_that_is_there_twice(tmp_path: Path):
    for name in ("1", "001", "01"):
        (tmp_path / name).mkdir()
    assert find_versions(tmp_path) == {1: tmp_path / "1"}


def test_a_base_path_that_is_not_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        find_versions(tmp_path / "nowhere")


def test_what_is_amiss():
    def amiss(policy, numbers):
        return what_is_amiss(ModelConfig("half", Path("/m"), policy), numbers)

    assert amiss(Latest(3), [1]) == amiss(All(), [1]) == amiss(Specific({1}), [1, 2]) == set()
    assert amiss(Specific({3, 1, 2}), [2]) == {"no 1, 3 of half under /m, but the policy names it"}
    [empty] = amiss(Latest(1), [])
    assert empty.startswith("no version of half under /m; a version is a folder with a number")
