"""python -m tinyqwen"""

import sys

from tinyqwen.cli.main import main

sys.exit(main())
