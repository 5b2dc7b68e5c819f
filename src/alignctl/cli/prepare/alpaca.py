"""Turn Alpaca's instructions into rows for sft."""

from alignctl.cli.prepare.dataset import make_app

app = make_app("alpaca", __doc__, "downloads/alpaca_data.json")
