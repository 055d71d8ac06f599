from sckit.report.text import number, with_interval


def test_zero_has_no_sign():
    assert number(-0.00001, digits=4, signed=True) == "0.0000"
    assert number(0.00001, digits=4, signed=True) == "0.0000"
    assert number(-0.0001, digits=4, signed=True) == "-0.0001"
    assert with_interval(None, 0.1, 0.2) == "-"
    assert number(12.3, digits=1) == "12"
