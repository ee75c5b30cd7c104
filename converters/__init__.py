"""Conversion of Hugging Face checkpoints <-> Flax param trees, by one table per family.

Each table is read in both directions. This package handles only names, shapes and files, and
imports nothing from `icp_jax`.
"""

from converters.rules import ConversionError, Rule, Table

__all__ = ["ConversionError", "Rule", "Table", "table_for"]


def table_for(model_type: str) -> Table:
    """The table of a model_type. Raises ConversionError for an unsupported one."""
    from converters import llama, opt, sam

    tables = {"opt": opt.TABLE, **llama.TABLES, "sam": sam.TABLE}
    if model_type not in tables:
        raise ConversionError(
            f"model type {model_type!r} is not supported; supported: {', '.join(sorted(tables))}"
        )
    return tables[model_type]
