"""Turn Anthropic's HH preferences into rows for sft, reward, dpo, rlhf and online-dpo."""

from alignctl.cli.prepare.dataset import make_app

app = make_app("hh", __doc__, "downloads/hh-rlhf/harmless-base")
