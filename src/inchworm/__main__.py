"""`python -m inchworm`."""

import sys

from inchworm.cli.main import main

sys.exit(main())
