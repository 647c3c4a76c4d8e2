"""Bring an index up to date in a process of its own: INDEX FOLDER STUDENT."""

import sys

from teachclip.search import encode_files
from teachclip.search.limits import Limits
from teachclip.search.update import Wanted, update_index

if __name__ == "__main__":
    encode_files.WRITE_ROWS = 2  # many writes, so that a kill falls between them
    index, folder, student = sys.argv[1:]
    report = update_index(index, [folder], Wanted(student), limits=Limits(workers=1, batch_size=4), progress=False)
    print(report.encoded)
