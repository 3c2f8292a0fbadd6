"""Tests of your own about a vision model."""


def test_an_image_changes_the_verdict(tb_model, images):
    assert images.shape[1:] == (3, 32, 32)
    assert not tb_model(images).equal(tb_model(images * 0))
