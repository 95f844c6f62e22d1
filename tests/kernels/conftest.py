"""The interpreter computes both branches of every ``tl.where``: what it warns of there is not used."""


def pytest_configure(config):
    config.addinivalue_line(
        "filterwarnings",
        r"ignore:(invalid value|divide by zero|overflow) encountered:RuntimeWarning:triton\.runtime\.interpreter",
    )
