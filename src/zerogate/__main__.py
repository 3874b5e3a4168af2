"""`python -m zerogate` is `zerogate`."""

import sys

from zerogate.cli.main import main

sys.exit(main())
