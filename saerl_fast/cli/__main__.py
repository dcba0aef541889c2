"""python -m saerl_fast.cli is the same as saerl."""

import sys

from saerl_fast.cli import main

sys.exit(main())
