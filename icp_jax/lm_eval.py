"""The command `lm_eval`, which knows the model `icp_jax`: `python -m icp_jax.lm_eval`.

lm-eval finds the models of other packages only once they are registered.
"""

from __future__ import annotations

import sys

from icp_jax.errors import InputError


def main() -> int:
    """Run `lm_eval` on the process's arguments."""
    try:
        from icp_jax.evaluation import zero_shot  # noqa: F401  registers the model
    except ImportError:
        print("lm-eval is not installed: pip install 'icp-jax[zeroshot]'", file=sys.stderr)
        return 2
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        print(f"icp_jax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
