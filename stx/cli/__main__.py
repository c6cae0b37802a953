"""`python -m stx.cli`, as torchrun wants it."""

import sys

from stx.cli import main

sys.exit(main())
