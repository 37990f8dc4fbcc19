"""`python -m manyhands` is the program `manyhands`."""

import sys

from manyhands._command_line import main

if __name__ == "__main__":
    sys.exit(main())
