"""Turn Hendrycks' MATH into rows for sft and grpo."""

from alignctl.cli.prepare.dataset import make_app

app = make_app("math", __doc__, "downloads/MATH")
