"""A run by one process, or by several that train together: the chief's part is `kbert.run`.

All processes train, in step. The chief alone measures, and writes all files; what it knows and the
others need they are told by it, so that they need not see its output folder.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
from typing import Any

import tensorflow as tf

from kbert import run as of_one
from kbert.cluster import TRY_AGAIN, VARIABLE, LeftAlone, cluster_of, meet, this_cluster
from kbert.command import SIGNALLED
from kbert.config import Config, as_dict
from kbert.distribution import from_chief, replicas_of, telling_of_the_gone
from kbert.errors import InputError
from kbert.experiment import Materials
from kbert.trained_part import trained_part
from kbert.training import Interrupted

OWN = ("output", "resume", "debug", "monitor")
"""Options that may differ from process to process, and data.cache_dir."""


def run(config: Config) -> int:
    """Do what the options say, or this process's part of it; the exit status.

    Returns:
        That of `kbert.run.run`, of all processes alike; `TRY_AGAIN` where another one has not come
        or is gone, so that this one is to be started again.

    Raises:
        InputError: as `kbert.run.run`; or TF_CONFIG cannot be used.
    """
    if config.train.strategy != "multi_worker":
        _require_no_others(config)
        return of_one.run(config)
    of_one.set_up_logging(debug=config.debug)
    cluster = this_cluster()
    try:
        meet(cluster, _common(config))
        with telling_of_the_gone():
            replicas_of(config.train)  # TensorFlow wants it before anything else
            return _lead(config) if cluster.is_chief else _follow(config)
    except LeftAlone as error:
        print(f"{cluster.name}: {error}; the same command goes on.", file=sys.stderr)
        return TRY_AGAIN


def _require_no_others(config: Config) -> None:
    """InputError where processes are to be several, and none of them would know of the others."""
    if os.environ.get(VARIABLE):
        others = len(cluster_of(os.environ).addresses) - 1
        if others:
            raise InputError(
                f"{VARIABLE} names {others + 1} processes, but train.strategy is "
                f"{config.train.strategy}: add --train.strategy multi_worker, or unset {VARIABLE}."
            )


def _common(config: Config) -> dict[str, Any]:
    """What all processes must have alike."""
    options = {name: of for name, of in as_dict(config).items() if name not in OWN}
    data = {name: of for name, of in options["data"].items() if name != "cache_dir"}
    return {**options, "data": data}


def _lead(config: Config) -> int:
    status = of_one.run(config)
    if status == 0:
        from_chief(config.train, status)  # the others wait for it; stopped, they ended themselves
    return status


def _follow(config: Config) -> int:
    """Train with the chief, and wait until it is done; its exit status."""
    if not config.debug:  # the chief says it all
        logging.getLogger("kbert").setLevel(logging.WARNING)
    tf.config.experimental.enable_op_determinism()
    for number in (signal.SIGINT, signal.SIGTERM):  # Python's own would wait for the chief
        signal.signal(number, signal.SIG_DFL)
    # a teacher's layers, which a student begins with, are not there before the chief says so
    materials = None if config.distill.teacher else Materials(config)
    told = from_chief(config.train)
    if isinstance(told, int):  # there is nothing left to do
        return told
    train = dataclasses.replace(config.train, **told["train"])
    config = dataclasses.replace(config, train=train)
    materials = materials or Materials(config)
    for role, digest in materials.digests.items():
        if told["digests"].get(role) != digest:
            raise InputError(
                f"--data.{role} {getattr(config.data, role)}: another file than the chief's; give "
                "all processes the same."
            )
    from_chief(config.train)  # what a teacher or a frozen encoder says of the rows is in the cache
    experiment = trained_part(materials.experiment(config))
    try:
        experiment.train(experiment.new_model(), folder=None, callbacks=[])
    except Interrupted as stop:
        return SIGNALLED + stop.number
    return from_chief(config.train)
