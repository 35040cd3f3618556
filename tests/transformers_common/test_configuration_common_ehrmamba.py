"""transformers' common configuration tests, run against EHRMambaConfig."""

import unittest

import pytest

from ehrmamba_hf.modeling import EHRMambaConfig

ABSENT = "needs transformers' own tests, which `make transformers-tests` gets, and parameterized"
common = pytest.importorskip("transformers_tests.test_configuration_common", reason=ABSENT)

CHECKS = [
    name for name in dir(common.ConfigTester) if name.startswith(("create_and_test_", "check_"))
]


@pytest.mark.parametrize("check", CHECKS)
def test_config(check: str) -> None:
    tester = common.ConfigTester(
        unittest.TestCase(),
        config_class=EHRMambaConfig,
        common_properties=["hidden_size", "num_hidden_layers"],
        hidden_size=37,
        num_hidden_layers=3,
        expand=3,
    )
    getattr(tester, check)()
