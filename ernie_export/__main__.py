"""`python -m ernie_export`"""

import sys

from ernie_export.cli import main

sys.exit(main())
