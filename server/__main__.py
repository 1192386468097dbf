"""``python -m server`` is ``comment-translate serve``."""

import sys

from translator.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
