from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format

from serve.errors import Code, ServingError
from serve.model_config import (
    All,
    ConfigFilePoller,
    Latest,
    ModelConfig,
    Specific,
    check_labels,
    model_configs,
)
from serve.model_store import ModelStore
from serve.text_protos import ModelServerConfig

FOLDERS = {number: Path(f"/m/{number}") for number in (1, 2, 10)}


def config(text: str):
    return text_format.Parse(text, ModelServerConfig())


def listed(*models: str):
    return config("model_config_list {" + "".join(f"config {{{model}}}" for model in models) + "}")


NEWS = 'name: "news" base_path: "/m/news" model_platform: "tensorflow"'


@pytest.mark.parametrize(
    ("policy", "numbers"),
    [
        (Latest(), [10]),
        (Latest(2), [2, 10]),
        (Latest(9), [1, 2, 10]),
        (Latest(0), [10]),
        (All(), [1, 2, 10]),
        (Specific({2, 3}), [2]),
        (Specific({3}), []),
    ],
)
def test_policies(policy, numbers: list[int]):
    assert policy.wanted(FOLDERS) == {number: FOLDERS[number] for number in numbers}
    assert policy.wanted({}) == {}


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Latest(1)),
        ("model_version_policy { }", Latest(1)),
        ("model_version_policy { latest { } }", Latest(1)),
        ("model_version_policy { latest { num_versions: 3 } }", Latest(3)),
        ("model_version_policy { all { } }", All()),
        (
            "model_version_policy { specific { versions: 2 versions: 1 } }",
            Specific(frozenset({1, 2})),
        ),
    ],
)
def test_a_model(text: str, policy):
    assert model_configs(listed(NEWS + text)) == [ModelConfig("news", Path("/m/news"), policy)]


def test_labels_and_several_models():
    labels = 'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }'
    mail = 'name: "mail" base_path: "file:///m/mail" model_type: TENSORFLOW'
    assert model_configs(listed(NEWS + labels, mail)) == [
        ModelConfig("news", Path("/m/news"), labels={"stable": 1, "canary": 2}),
        ModelConfig("mail", Path("/m/mail")),
    ]


def test_no_models():
    assert model_configs(config("")) == []
    assert model_configs(listed()) == []


NEITHER = (
    "Illegal setting neither ModelServerConfig::model_type (deprecated) "
    "nor ModelServerConfig::model_platform."
)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([NEWS, NEWS], "Illegal to list model news multiple times in config list"),
        (
            ['name: "news" base_path: "m/news" model_platform: "tensorflow"'],
            "Expected model news to have an absolute path or URI; got base_path()=m/news",
        ),
        (
            ['name: "news" model_platform: "tensorflow"'],
            "Expected model news to have an absolute path or URI; got base_path()=",
        ),
        (['name: "news" base_path: "/m/news"'], NEITHER),
        (
            [NEWS + "model_type: TENSORFLOW"],
            "Illegal setting both ModelServerConfig::model_type (deprecated) "
            "and ModelServerConfig::model_platform.",
        ),
        (
            ['name: "news" base_path: "/m/news" model_type: OTHER'],
            "ModelServerConfig::model_type choice 2 not supported.",
        ),
        (
            ['name: "news" base_path: "/m/news" model_platform: "torch"'],
            "Model news requests unsupported platform torch",
        ),
        (
            ['name: "old" base_path: "/m/old" model_platform: "torch"'],
            "Illegal to change a model's platform. For model old platform was tensorflow and new "
            "platform requested is torch",
        ),
    ],
)
def test_errors(models: list[str], message: str):
    with pytest.raises(ServingError) as caught:
        model_configs(listed(*models), known=["old"])
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, message)


def test_file_systems_that_are_not_there():
    with pytest.raises(ServingError) as caught:
        model_configs(listed('name: "a" base_path: "gs://b/a" model_platform: "tensorflow"'))
    assert caught.value.code is Code.UNIMPLEMENTED
    assert caught.value.message == "File system scheme 'gs' not implemented (file: 'gs://b/a')"


def test_a_custom_configuration():
    with pytest.raises(ServingError, match="does not yet support custom model config"):
        model_configs(config("custom_model_config { }"))


@pytest.mark.parametrize(
    ("labels", "is_allowed_strictly", "is_allowed_for_unavailable"),
    [
        ({"stable": 2}, True, True),
        ({"new": 1}, True, True),
        ({"new": 9}, False, True),
        ({"gone": 7}, False, True),  # stays where it is
        ({"stable": 9}, False, False),  # moves to what is not there
    ],
)
def test_check_labels(labels, is_allowed_strictly: bool, is_allowed_for_unavailable: bool):
    def problem(allow_unavailable: bool) -> str:
        try:
            check_labels(
                [ModelConfig("a", Path("/a"), labels=labels)],
                available={"a": {1, 2}, "b": {9}},
                old_labels={"a": {"stable": 2, "gone": 7}, "b": {"new": 1}},
                allow_unavailable=allow_unavailable,
            )
        except ServingError as error:
            return f"{error.code.name}: {error.message}"
        return ""

    [number] = labels.values()
    refused = (
        f"FAILED_PRECONDITION: Request to assign label to version {number} of model a, "
        "which is not currently available for inference"
    )
    assert problem(False) == ("" if is_allowed_strictly else refused)
    assert problem(True) == ("" if is_allowed_for_unavailable else refused)


@pytest.fixture
def store() -> ModelStore:
    """It is configured, but not started."""
    return ModelStore([], load=lambda name, path, version: pytest.fail("nothing is loaded"))


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Callable]:
    """A function that starts a poller of tmp_path/models.config."""
    pollers = []

    def follow(store: ModelStore) -> None:
        poller = ConfigFilePoller(tmp_path / "models.config", store, 0.01)
        pollers.append(poller)
        poller.start()

    yield follow
    for poller in pollers:
        poller.stop()
        assert not poller._thread.is_alive()


def test_the_file_is_followed(follow, store: ModelStore, tmp_path: Path, wait_until: Callable):
    file = tmp_path / "models.config"
    file.write_text(str(listed(NEWS)))
    follow(store)
    wait_until(lambda: store.models() == ["news"])
    file.write_text(str(listed(NEWS, NEWS.replace("news", "mail"))))
    wait_until(lambda: store.models() == ["news", "mail"])


def test_a_bad_file_is_logged_once(
    follow, store: ModelStore, tmp_path: Path, wait_until: Callable, caplog
):
    def write(text: str) -> None:
        (tmp_path / "whole").write_text(text)
        (tmp_path / "whole").replace(tmp_path / "models.config")

    caplog.set_level("INFO")
    store.configure([ModelConfig("news", Path("/m/news"))])
    follow(store)
    wait_until(lambda: "models.config: No such file" in caplog.text)
    for text, problem in [
        ("model_config_list {", "Error parsing text-format tensorflow.serving.ModelServerConfig"),
        (str(listed(NEWS, NEWS)), "Illegal to list model news multiple times"),
        ("", "Cannot transition to requested config. It is only legal to transition"),
        (str(listed(NEWS.replace('"tensorflow"', '"x"'))), "platform was tensorflow and new"),
        (
            str(listed(NEWS + 'version_labels { key: "a" value: 1 }')),
            "Request to assign label to version 1 of model news",
        ),
    ]:
        write(text)
        wait_until(lambda problem=problem: problem in caplog.text)
    assert store.models() == ["news"]
    write(str(listed(NEWS.replace("news", "mail"))))
    wait_until(lambda: "models.config is in force now" in caplog.text)
    assert store.models() == ["mail"]
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 6  # one each, though each was read many times
