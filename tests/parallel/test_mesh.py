import jax
import pytest
from jax.sharding import AxisType

from reweight import parallel


def shape(spec, **kwargs):
    return dict(parallel.make_mesh(spec, **kwargs).shape)


def test_sizes_come_from_the_string_in_its_order():
    assert list(shape("data=4,model=2").items()) == [("data", 4), ("model", 2)]
    assert list(shape(" model = 2 , data = 4 ").items()) == [("model", 2), ("data", 4)]


def test_minus_one_takes_what_is_left():
    assert shape("data=-1,model=2") == {"data": 4, "model": 2}
    assert shape("data=8,model=-1") == {"data": 8, "model": 1}


def test_default_is_one_data_axis_over_all_devices():
    assert shape(None) == shape("data=-1") == {"data": 8}


def test_given_devices_are_used_and_no_others():
    devices = jax.devices()[2:6]
    mesh = parallel.make_mesh("data=-1", devices=devices)
    assert set(mesh.devices.flat) == set(devices)


def test_axes_are_auto_so_that_jit_places_the_collectives():
    assert set(parallel.make_mesh("data=4,model=2").axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("data=3", "a mesh of 3, for 8 devices"),
        ("data=16", "a mesh of 16, for 8 devices"),
        ("data=-1,model=3", "divides the number of devices"),
        ("data=-1,model=-1", "2 axes have size -1"),
        ("data=4,data=2", "names the axis 'data' twice"),
        ("data=four", "'four' is not an integer"),
        ("data=2.0,model=4", "'2.0' is not an integer"),
        ("data=0", "'data' has size 0"),
        ("data=-2", "'data' has size -2"),
        ("data", "'data' is not name=size"),
        ("=8", "'=8' is not name=size"),
        ("4x2=8", "'4x2=8' is not name=size"),
        ("data=8,", "'' is not name=size"),
        ("", "'' is not name=size"),
    ],
)
def test_a_bad_string_is_named_with_what_is_wrong_in_it(spec, says):
    with pytest.raises(ValueError, match="make_mesh: argument `spec`") as error:
        parallel.make_mesh(spec)
    assert says in str(error.value)
    assert repr(spec) in str(error.value)
