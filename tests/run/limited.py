"""Run `marble` with a limit on the size of files, such as a quota.

Arguments: the limit in bytes, and those of `marble`.
"""

import resource
import sys

from marble_cli.cli.app import main

limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
