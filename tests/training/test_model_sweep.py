"""One model of each family that optimum-graphcore supports: two updates over two IPUs end in the weights of the host."""

import pytest
from families import CASES, assert_as_host, model_of, trained


@pytest.mark.parametrize("family", CASES)
def test_two_ipus_train_as_the_host(tmp_path, family):
    expected = trained(tmp_path / "host", family, "host", host_micro_batch_size="micro_batch")
    weights = trained(tmp_path / "ipus", family, "simulated", pipelined=True)
    assert_as_host(weights, expected, model_of(family)[0].state_dict())
