import logging
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve.errors import Code
from serve.version_states import ModelVersions, State, Steps, Version, next_steps

NUMBERS = range(1, 6)


def test_the_new_is_loaded_before_the_old_goes():
    assert next_steps(wanted={2}, serving={1}, loadable={2}) == Steps(load=[2], unload=[])
    assert next_steps(wanted={2}, serving={1, 2}, loadable=set()) == Steps(load=[], unload=[1])


def test_all_that_is_wanted_is_loaded_newest_first():
    steps = next_steps(wanted={2, 3, 4}, serving={2}, loadable={3, 4})
    assert steps == Steps(load=[4, 3], unload=[])


def test_one_old_version_is_enough_until_a_new_one_serves():
    steps = next_steps(wanted={5}, serving={1, 2, 3}, loadable={5})
    assert steps == Steps(load=[5], unload=[1, 2])


def test_a_wanted_version_that_serves_lets_the_others_go_at_once():
    steps = next_steps(wanted={2, 3}, serving={1, 2}, loadable={3})
    assert steps == Steps(load=[3], unload=[1])


def test_what_cannot_be_loaded_leaves_the_old_one():
    assert next_steps(wanted={2}, serving={1}, loadable=set()) == Steps(load=[], unload=[])


def test_nothing_wanted_unloads_all():
    assert next_steps(wanted=set(), serving={2, 1}, loadable=set()) == Steps([], [1, 2])


class Servable:
    """Stands for a loaded model; nothing but its being there matters here."""


class LivesOfVersions(RuleBasedStateMachine):
    """Any order of folders that come and go, loads that end well or not, and requests."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.now = 0.0
        self.versions = ModelVersions(
            "half",
            max_retries=1,
            retry_seconds=10,
            report=lambda level, text: self.levels.append(level),
        )
        self.was_serving = False

    def loading(self) -> list[Version]:
        """Those that a thread is loading."""
        return [
            version
            for version in self.versions.versions.values()
            if version.status.state is State.LOADING and version.load_at is None
        ]

    @rule(numbers=st.sets(st.sampled_from(NUMBERS)))
    def folders_change(self, numbers: set[int]) -> None:
        served = bool(self.versions.serving)
        self.versions.want({number: Path(str(number)) for number in numbers}, self.now)
        # Availability is preserved, unless nothing is to be served.
        assert bool(self.versions.serving) == (served and bool(numbers))

    @rule(number=st.sampled_from(NUMBERS))
    def load_begins(self, number: int) -> None:
        version = self.versions.versions.get(number)
        if version and version.load_at is not None:
            self.now = max(self.now, version.load_at)
            assert self.versions.begin_load(version) == Path(str(number))

    @precondition(lambda self: self.loading())
    @rule()
    def load_ends(self) -> None:
        served = bool(self.versions.serving)
        version = self.loading()[0]
        self.versions.end_load(version, Servable(), self.now)
        assert bool(self.versions.serving) == (
            served or version.status.version in self.versions.wanted
        )

    @precondition(lambda self: self.loading())
    @rule()
    def load_fails(self) -> None:
        served = set(self.versions.serving)
        self.versions.fail_load(self.loading()[0], Code.NOT_FOUND, "no file", self.now)
        assert set(self.versions.serving) == served

    @rule(number=st.sampled_from([None, *NUMBERS]))
    def request_begins(self, number: int | None) -> None:
        if number in self.versions.serving:
            self.versions.serving[number].running_requests += 1

    @rule(number=st.sampled_from(NUMBERS))
    def request_ends(self, number: int) -> None:
        version = self.versions.versions.get(number)
        if version and version.running_requests:
            version.running_requests -= 1

    @rule()
    def idle_ones_are_closed(self) -> None:
        for version in list(self.versions.versions.values()):
            if version.is_idle:
                version.servable = None
                self.versions.end_unload(version, self.now)

    @rule()
    def all_settles(self) -> None:
        """All is as it should be once every load was tried to the end and every request is done."""
        for version in self.versions.versions.values():
            version.running_requests = 0
        for _ in range(20):
            self.idle_ones_are_closed()
            for number in NUMBERS:
                self.load_begins(number)
            while self.loading():
                self.load_ends()
        serving = set(self.versions.serving) - {None}
        given_up = {
            number for number, version in self.versions.versions.items() if version.is_given_up
        }
        wanted = set(self.versions.wanted) - given_up
        if wanted or not self.versions.wanted:
            assert serving == wanted
        else:  # none of the wanted ones can be loaded: the newest of the old ones may go on
            assert len(serving) <= 1

    @invariant()
    def states_fit_what_is_held(self) -> None:
        for number, version in self.versions.versions.items():
            status = version.status
            is_held = status.state in (State.AVAILABLE, State.UNLOADING)
            assert (version.servable is not None) == is_held
            assert is_held or not version.running_requests
            assert version.load_at is None or status.state in (State.START, State.LOADING)
            assert version.load_at is None or number in self.versions.wanted
            assert (number in self.versions.serving) == (status.state is State.AVAILABLE)
            assert not version.is_given_up or number in self.versions.wanted
        available = set(self.versions.serving) - {None}
        assert (None in self.versions.serving) == bool(available)
        if available:
            assert self.versions.serving[None].status.version == max(available)

    @invariant()
    def levels_are_those_of_logging(self) -> None:
        assert set(self.levels) <= {logging.INFO, logging.WARNING, logging.ERROR}


LivesOfVersions.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLivesOfVersions = LivesOfVersions.TestCase
