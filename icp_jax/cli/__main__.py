import sys

from icp_jax.cli.app import main

sys.exit(main())
