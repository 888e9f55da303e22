"""What users need to test their own groups and networks: the group laws, and equivariance."""

from lie.testing.equivariance import assert_equivariant, equivariance_error
from lie.testing.laws import check_group

__all__ = ["assert_equivariant", "check_group", "equivariance_error"]
