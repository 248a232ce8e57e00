import pytest

from pipeline.config import RayConfig
from pipeline.flow.room import CPU_ENCODER_CORES, PoolSizes, Room


def room(*node_cores: float, on_gpu: bool = True, encode_workers: int = 1, **settings: object) -> Room:
    return Room(
        settings=RayConfig.model_validate(settings),
        node_cores=node_cores,
        encode_workers=encode_workers,
        encoder_cores=0.0 if on_gpu else CPU_ENCODER_CORES,
    )


def test_one_node_keeps_a_decode_actor_for_every_core_but_one() -> None:
    assert room(16).decoder_pool(1000) == PoolSizes(least=15, initial=15, most=15)
    assert room(16).cores_per_decoder == 1.0


def test_there_are_no_more_actors_than_requests() -> None:
    assert room(16).decoder_pool(4) == PoolSizes(least=4, initial=4, most=4)


def test_more_workers_than_cores_share_them_and_all_start() -> None:
    found = room(2, on_gpu=False, decode_workers=8)
    assert found.decoder_pool(1000) == PoolSizes(least=8, initial=8, most=8)
    assert 8 * found.cores_per_decoder + CPU_ENCODER_CORES + 0.05 <= 2


def test_actors_that_reserve_whole_cores_start_where_there_are_some_and_the_others_come_with_nodes() -> None:
    found = room(2, on_gpu=False, decode_workers=8, decode_cores=1)
    assert found.decoder_pool(1000) == PoolSizes(least=1, initial=1, most=8)


def test_of_several_nodes_one_may_be_lost_and_the_actors_have_room_on_the_others() -> None:
    found = room(0, 16, 16)
    sizes = found.decoder_pool(1000)
    assert sizes.initial == sizes.most == 31
    assert sizes.most * found.cores_per_decoder <= 16


def test_actors_that_would_have_no_room_after_a_loss_may_be_let_go_and_no_others() -> None:
    sizes = room(0, 16, 16, 16, decode_workers=95, decode_cores=1).decoder_pool(1000)
    assert sizes == PoolSizes(least=31, initial=47, most=95)


def test_an_actor_stands_on_one_node_so_rests_of_several_are_no_room() -> None:
    sizes = room(8, 2, 2, 2, 2, 2, decode_cores=3).decoder_pool(1000)
    assert sizes == PoolSizes(least=1, initial=2, most=17)


def test_actors_on_the_only_node_with_cores_are_kept() -> None:
    sizes = room(0, 16, 0, decode_workers=15, decode_cores=1).decoder_pool(1000)
    assert sizes == PoolSizes(least=15, initial=15, most=15)


@pytest.mark.parametrize("cores", [(1,), (1, 0), (0.5, 0.5), (2, 2), (1, 1, 1), (96, 4, 4, 4)])
@pytest.mark.parametrize("settings", [{}, {"decode_workers": 40}, {"decode_workers": 3, "decode_cores": 1}])
def test_the_sizes_are_such_as_a_pool_may_have(cores: tuple[float, ...], settings: dict[str, object]) -> None:
    found = room(*cores, on_gpu=False, **settings)
    sizes = found.decoder_pool(10)
    assert 1 <= sizes.least <= sizes.initial <= sizes.most <= 10
    assert found.cores_per_decoder > 0


def test_room_for_no_decode_actor_is_told_and_room_for_one_is_not() -> None:
    assert room(1, on_gpu=False, decode_cores=1).lacks == (
        "ray.decode_cores=1: no node has so many cores beside the run's other actors, which take 0.55; "
        "the largest has 1"
    )
    assert room(2, 2, decode_cores=3).lacks is not None
    assert room(2, on_gpu=False, decode_cores=1).lacks is None


@pytest.mark.parametrize("cores", [(1,), (2,), (1, 1), (0.5, 0.5), (16, 0)])
def test_without_a_setting_there_is_always_room(cores: tuple[float, ...]) -> None:
    assert room(*cores, on_gpu=False).lacks is None
