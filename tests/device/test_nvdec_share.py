"""The GPU's share follows what it releases."""

from pipeline.device.nvdec.share import DeviceShare


def test_nothing_is_handed_over_before_a_gpu_is_there():
    share = DeviceShare()
    assert not share.claim("a")
    share.open("gpu", 1)
    assert share.claim("a")


def test_no_more_is_handed_over_than_there_is_room_for():
    share = DeviceShare()
    share.open("one", 2)
    share.open("other", 1)
    assert [share.claim(name) for name in "abcd"] == [True, True, True, False]


def test_a_faster_gpu_gets_more():
    share = DeviceShare()
    share.open("gpu", 1)
    handed = 0
    for number in range(10):
        if share.claim(str(number)):
            handed += 1
            share.release(str(number))
    assert handed == 10


def test_a_request_that_was_handed_over_stays_handed_over_when_its_row_is_run_again():
    share = DeviceShare()
    share.open("gpu", 1)
    assert share.claim("a")
    assert share.claim("a")
    assert not share.claim("b")
    share.release("a")
    share.release("a")
    assert share.claim("b")


def test_a_gpu_that_comes_back_after_a_restart_is_counted_once():
    share = DeviceShare()
    share.open("gpu", 1)
    share.open("gpu", 1)
    assert [share.claim(name) for name in "ab"] == [True, False]


def test_decoders_that_are_gone_get_nothing_more():
    share = DeviceShare()
    share.open("gpu", 3)
    share.open("gpu", 0)
    assert not share.claim("a")
