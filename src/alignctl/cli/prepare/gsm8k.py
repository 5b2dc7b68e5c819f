"""Turn GSM8K into rows for sft and grpo."""

from alignctl.cli.prepare.dataset import make_app

app = make_app("gsm8k", __doc__, "downloads/gsm8k")
