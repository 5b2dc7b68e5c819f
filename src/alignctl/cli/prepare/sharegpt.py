"""Turn ShareGPT's conversations into rows for sft."""

from alignctl.cli.prepare.dataset import make_app

app = make_app("sharegpt", __doc__, "downloads/sg.json")
