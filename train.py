"""Fine-tune a pretrained BERT on a file of texts: `python train.py --help`."""

from __future__ import annotations

import sys

from kbert.command import finish
from kbert.config import at_toy_size, parse
from serve.startup import import_tensorflow_quietly


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the status: 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM."""
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        config = parse(arguments)
        # TensorFlow is imported from here on: --help and a wrong option are answered at once
        import_tensorflow_quietly()
        from kbert import joint_run

        return joint_run.run(at_toy_size(config) if config.smoke else config)

    return finish("train.py: error", work, debug=debug, resumes=True)


if __name__ == "__main__":
    sys.exit(main())
