"""Tell what Parquet footers say of columns of texts: run in a process of its own.

    python parquet_check.py

A damaged footer can make pyarrow end the process at the moment it is asked for a column chunk. So
that is asked here, with limits; `parquet_files.py` starts it, sends the footers of one file after
the other, and takes an end for an answer. Nothing of kbert imports it, and it imports nothing of
kbert. Without a question for `IDLE` it ends by itself.

stdin gets, for each file, a line of JSON, {"columns": [name, ...], "size": bytes}, and then so many
bytes: the file metadata in Thrift, as it stands before the last eight bytes of the file. stdout
gets a line of JSON for each, {path: [has_dictionary, bytes_per_value]} of the columns of bytes
below those names, or a string that tells what is wrong.
"""

import json
import resource
import select
import sys
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

SECONDS = 5  # of computing, for a footer; two columns of a thousand row groups take 0.003
MEMORY = 4 << 30  # bytes of addresses; the allocator reserves a part of them at once
IDLE = 10  # seconds


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    questions = sys.stdin.buffer
    while select.select([questions], [], [], IDLE)[0] and (line := questions.readline()):
        used = resource.getrusage(resource.RUSAGE_SELF)
        until = int(used.ru_utime + used.ru_stime) + 1 + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        print(json.dumps(_answer(json.loads(line), questions)), flush=True)


def _answer(question: dict, questions: BinaryIO) -> dict[str, list] | str:
    footer = questions.read(question["size"])
    whole = b"PAR1%b%bPAR1" % (footer, len(footer).to_bytes(4, "little"))
    try:
        return _columns(pq.read_metadata(pa.BufferReader(whole)), question["columns"])
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__


def _columns(metadata: pq.FileMetaData, names: list[str]) -> dict[str, list]:
    """Of each column of bytes below the names: whether it has a dictionary, and its mean value."""
    found: dict[str, list] = {}
    for number in range(metadata.num_columns):
        column = metadata.schema.column(number)
        is_wanted = any(column.path == name or column.path.startswith(f"{name}.") for name in names)
        if not is_wanted or column.physical_type != "BYTE_ARRAY":
            continue
        of_column = found.setdefault(column.path, [False, 0.0])
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(number)
            size = chunk.total_uncompressed_size / max(1, chunk.num_values)
            of_column[0] |= chunk.has_dictionary_page
            of_column[1] = max(of_column[1], size)
    return found


if __name__ == "__main__":
    main()
