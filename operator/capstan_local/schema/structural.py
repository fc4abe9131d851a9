"""Structural schemas of custom resources: what a CRD's schema may say, and what it makes of objects."""

from capstan_local.schema.field_errors import FieldError
from capstan_local.schema.structural_check import check_structural
from capstan_local.schema.structural_tree import SchemaError, Structural, compile_schema

__all__ = ["FieldError", "SchemaError", "Structural", "check_structural", "compile_schema"]
